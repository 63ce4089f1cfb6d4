"""Batches of loader processes are those that a single process makes, for as long as anyone holds them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_cut
from lhotse import CutSet
from torch.utils.data import DataLoader

from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches, PlannedBatch
from speechllm_pl.data.manifest import Manifest, read_manifest
from speechllm_pl.data.shared_memory import padded, padded_frames
from speechllm_pl.data.utterance import audio_digest
from speechllm_pl.storage.frame_cache import FrameCache


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Twelve recordings: of one the file is missing, one is stereo, one has another rate."""
    folder = tmp_path_factory.mktemp("recordings")
    made = []
    for number in range(12):
        rate = 8_000 if number == 7 else 16_000
        shape = (round(rate * (0.2 + 0.03 * number)), 2 if number == 5 else 1)
        samples = 0.1 * np.random.default_rng(number).standard_normal(shape)
        made.append(write_cut(folder, f"u{number}", samples, "x", "en", rate))
    (folder / "u3.wav").unlink()
    CutSet.from_cuts(made).to_file(folder / "cuts.jsonl")
    return read_manifest(folder / "cuts.jsonl")


@pytest.fixture
def plan(cuts: Manifest) -> list[PlannedBatch]:
    return [batch for epoch in range(6) for batch in EpochBatches(Buckets(cuts.durations, 1.0, 3), epoch=epoch)]


def loader(cuts: Manifest, plan: list[PlannedBatch], workers: int, method: str = "forkserver") -> DataLoader:
    return DataLoader(
        SpeechDataset(cuts), sampler=plan, batch_size=None, num_workers=workers, multiprocessing_context=method
    )


def test_batches_are_those_of_a_single_process(cuts, plan) -> None:
    alone = [SpeechDataset(cuts)[planned] for planned in plan]
    for ours, expected in zip(loader(cuts, plan, 2), alone, strict=True):
        assert ours.waveforms.equal(expected.waveforms)
        assert ours.lengths.equal(expected.lengths)
        assert ours[2:] == expected[2:]


def test_batches_that_are_kept_keep_their_samples(cuts, plan) -> None:
    alone = [SpeechDataset(cuts)[planned] for planned in plan]
    kept = list(loader(cuts, plan, 1))
    assert len(kept) > 10
    assert all(ours.waveforms.equal(expected.waveforms) for ours, expected in zip(kept, alone, strict=True))


def test_a_part_of_a_batch_keeps_its_samples(cuts, plan) -> None:
    parts, expected = [], []
    for batch in loader(cuts, plan, 1):
        if len(parts) < 3:
            parts.append(batch.waveforms[0, :100])
            expected.append(parts[-1].clone())
    assert torch.stack(parts).equal(torch.stack(expected))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_however_workers_are_started_their_batches_arrive(cuts, plan, method: str) -> None:
    for batch, planned in zip(loader(cuts, plan[:8], 1, method), plan, strict=False):
        assert batch.waveforms.equal(SpeechDataset(cuts)[planned].waveforms)


@pytest.mark.parametrize("in_a_worker", [False, True])
def test_rows_are_padded_with_zeros(monkeypatch: pytest.MonkeyPatch, in_a_worker: bool) -> None:
    monkeypatch.setattr("speechllm_pl.data.shared_memory.get_worker_info", lambda: in_a_worker or None)
    rows = [np.arange(1, length + 1, dtype=np.float32) for length in (5, 0, 12_345, 3)]
    for some in (rows, rows[:1], rows[1:2], []):
        longest = max(map(len, some), default=0)
        expected = [np.pad(row, (0, longest - len(row))) for row in some]
        np.testing.assert_array_equal(padded(some), np.stack(expected) if some else np.zeros((0, 0)))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_batches_need_no_room_in_shared_memory_of_the_system(cuts, plan) -> None:
    """A container has little of it."""
    for batch in loader(cuts, plan[:4], 1):
        assert "memfd:speechllm" in mapped_at(batch.waveforms.data_ptr())


def mapped_at(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return line
    return ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("workers", [0, 1])
def test_cached_frames_take_the_place_of_audio(cuts, tmp_path: Path, dtype: torch.dtype, workers: int) -> None:
    cache, kept = FrameCache(tmp_path), {}
    for number in (0, 2, 5):
        kept[cuts[number].id] = torch.randn(3 + number, 6).to(dtype)
        cache.add(audio_digest(cuts[number]), kept[cuts[number].id])
    cache.flush()
    plan = [PlannedBatch(np.array([5, 1, 0, 2]), seed=0)] * 2
    how = {"num_workers": workers, "multiprocessing_context": "forkserver" if workers else None}
    for batch in DataLoader(SpeechDataset(cuts, frames=cache), sampler=plan, batch_size=None, **how):
        assert batch.ids == ["u5", "u0", "u2"]
        assert batch.skipped == ["u1"]
        assert batch.waveforms.shape == (3, 0)
        assert batch.lengths.tolist() == [round(16_000 * cuts[number].duration) for number in (5, 0, 2)]
        frames, lengths = batch.audio
        assert (frames.dtype, frames.shape) == (dtype, (3, 8, 6))
        assert lengths.tolist() == [8, 3, 5]
        for row, id_ in enumerate(batch.ids):
            assert torch.equal(frames[row, : lengths[row]], kept[id_])
            assert not frames[row, lengths[row] :].any()


@pytest.mark.parametrize("in_a_worker", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_frames_of_both_precisions_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch, in_a_worker: bool, swapped: bool
) -> None:
    """As two devices compute them in bf16-mixed."""
    monkeypatch.setattr("speechllm_pl.data.shared_memory.get_worker_info", lambda: in_a_worker or None)
    rows = [torch.randn(5, 6).bfloat16(), torch.randn(3, 6)][:: -1 if swapped else 1]
    frames, lengths = padded_frames(rows)
    assert lengths.tolist() == [len(row) for row in rows]
    for found, row in zip(frames, rows, strict=True):
        assert torch.equal(found[: len(row)], row.float())
        assert not found[len(row) :].any()


def test_a_batch_of_which_no_frames_are_there_is_empty(cuts, tmp_path: Path) -> None:
    batch = SpeechDataset(cuts, frames=FrameCache(tmp_path))[PlannedBatch(np.array([1, 2]), seed=0)]
    assert batch.ids == []
    assert batch.frozen is not None
    assert len(batch.skipped) == batch.due == 2
