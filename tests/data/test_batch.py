"""A batch of a training step."""

import torch

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
