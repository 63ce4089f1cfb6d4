"""A batch of a training step."""

import torch

from speechllm_pl.core.padded import Padded
from speechllm_pl.data.batch import Batch

BATCH = Batch(
    torch.ones(2, 32_000), torch.tensor([32_000, 16_000]), ["one", "two"], ["en", "en"], ["a", "b"], ["c"], seed=3
)


def test_its_seconds_are_those_of_audio_without_padding() -> None:
    assert BATCH.seconds == 3.0


def test_it_moves_to_a_device_with_everything_else_as_it_was() -> None:
    there = BATCH.to(torch.device("meta"))
    assert there.waveforms.device.type == there.lengths.device.type == "meta"
    assert there.waveforms.shape == BATCH.waveforms.shape
    assert there[2:] == BATCH[2:]


def test_cached_frames_are_its_audio_and_move_with_it() -> None:
    frozen = Padded(torch.ones(2, 5, 4), torch.tensor([5, 3]))
    assert BATCH.audio.values is BATCH.waveforms
    assert BATCH._replace(frozen=frozen).audio is frozen
    there = BATCH._replace(frozen=frozen).to(torch.device("meta"))
    assert {tensor.device.type for tensor in there.audio} == {"meta"}
    assert there.audio.values.shape == (2, 5, 4)
