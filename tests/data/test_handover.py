"""Batches in memory that is used again are those that a single process makes, for as long as anyone holds them."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from conftest import write_cut
from lhotse import CutSet
from torch.utils.data import DataLoader

from speechllm_pl.data import handover as module
from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches, PlannedBatch
from speechllm_pl.data.handover import PLACES, Handover, padded
from speechllm_pl.data.loader import start_server, start_worker
from speechllm_pl.data.manifest import Manifest, read_manifest


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


@pytest.fixture
def in_a_worker() -> Iterator[Handover]:
    """What a loader's process has; its batches are never sent."""
    handover = Handover(1)
    handover._worker = 0
    module._mine = handover
    yield handover
    module._mine = None


def loader(
    cuts: Manifest,
    plan: list[PlannedBatch],
    workers: int,
    method: str = "forkserver",
    place_bytes: int = module.PLACE_BYTES,
) -> DataLoader:
    start_server()
    handover = Handover(workers, place_bytes)
    start = partial(start_worker, handover=handover)
    return DataLoader(
        SpeechDataset(cuts),
        sampler=plan,
        batch_size=None,
        num_workers=workers,
        collate_fn=handover,
        worker_init_fn=start,
        multiprocessing_context=method,
    )


def test_batches_are_those_of_a_single_process(cuts, plan) -> None:
    alone = [SpeechDataset(cuts)[planned] for planned in plan]
    for ours, expected in zip(loader(cuts, plan, 2), alone, strict=True):
        assert ours.waveforms.equal(expected.waveforms)
        assert ours.lengths.equal(expected.lengths)
        assert ours[2:] == expected[2:]


def test_batches_that_are_kept_keep_their_samples(cuts, plan) -> None:
    """More than there are places."""
    alone = [SpeechDataset(cuts)[planned] for planned in plan]
    kept = list(loader(cuts, plan, 1))
    assert len(kept) > 2 * PLACES
    assert all(ours.waveforms.equal(expected.waveforms) for ours, expected in zip(kept, alone, strict=True))


def test_a_part_of_a_batch_keeps_its_samples(cuts, plan) -> None:
    parts, expected = [], []
    for batch in loader(cuts, plan, 1):
        if len(parts) < 3:
            parts.append(batch.waveforms[0, :100])
            expected.append(parts[-1].clone())
    assert torch.stack(parts).equal(torch.stack(expected))


def test_memory_is_used_again(cuts, plan) -> None:
    where = {batch.waveforms.data_ptr() for batch in loader(cuts, plan * 3, 1)}
    assert len(where) <= PLACES


def test_places_whose_batches_nobody_received_are_used_by_the_next_workers(cuts, plan) -> None:
    batches = loader(cuts, plan, 1)
    for _ in range(5):
        iterator = iter(batches)
        next(iterator)
        del iterator
    handover = batches.collate_fn
    for batch in batches:
        assert not (handover._states == module.FREE).all()
        del batch
    assert (handover._states == module.FREE).all()


def test_a_batch_that_is_too_large_for_a_place_comes_another_way(cuts, plan) -> None:
    alone = [SpeechDataset(cuts)[planned] for planned in plan]
    sizes = sorted(batch.waveforms.nbytes for batch in alone)
    place_bytes = -(-sizes[len(sizes) // 2] // 4096) * 4096
    assert sizes[-1] > place_bytes
    for ours, expected in zip(loader(cuts, plan, 1, place_bytes=place_bytes), alone, strict=True):
        assert ours.waveforms.equal(expected.waveforms)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_however_workers_are_started_they_have_the_same_memory(cuts, plan, method: str) -> None:
    where = set()
    for batch, planned in zip(loader(cuts, plan[:8], 1, method), plan, strict=False):
        assert batch.waveforms.equal(SpeechDataset(cuts)[planned].waveforms)
        where.add(batch.waveforms.data_ptr())
    assert len(where) <= PLACES


@pytest.mark.parametrize("change", ["none", "order", "shifted", "other memory", "one less", "joined", "longer"])
def test_padding_is_right_whatever_has_become_of_what_was_decoded(in_a_worker: Handover, change: str) -> None:
    draw = np.random.default_rng(0)
    lengths = (50, 80, 20, 80)
    for _ in range(2 * PLACES):
        module.expect(len(lengths), max(lengths))
        recordings = []
        for length in lengths:
            samples = module.row(length)
            samples[:] = draw.standard_normal(length)
            recordings.append(samples)
        if change == "order":
            recordings = recordings[::-1]
        elif change == "shifted":
            recordings[1] = recordings[1][7:]
        elif change == "other memory":
            recordings[2] = recordings[2] * 2
        elif change == "one less":
            del recordings[1]
        elif change == "joined":
            recordings[:2] = [np.concatenate(recordings[:2])]
        elif change == "longer":
            recordings[3] = np.tile(recordings[3], 2)
        longest = max(map(len, recordings))
        expected = np.stack([np.pad(samples, (0, longest - len(samples))) for samples in recordings])
        waveforms = padded(recordings)
        np.testing.assert_array_equal(waveforms.numpy(), expected)
        if change in ("none", "other memory"):
            assert waveforms.data_ptr() == recordings[0].ctypes.data  # nothing was copied
        in_a_worker._states[:] = module.FREE


def test_without_a_worker_padding_is_plain() -> None:
    assert padded([np.ones(2, np.float32), np.ones(3, np.float32)]).tolist() == [[1, 1, 0], [1, 1, 1]]
    assert padded([]).shape == (0, 0)
