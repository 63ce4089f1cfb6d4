"""An epoch's plan: every cut, as many batches to every rank, and a resumed run gets the rest."""

from collections import Counter

import numpy as np
import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batches import EpochBatches


def made_up_cuts(count: int, seed: int = 0) -> CutSet:
    """Cuts of 1 to 9 seconds without recordings."""
    seconds = np.random.default_rng(seed).uniform(1, 9, count).round(2).tolist()
    return CutSet.from_cuts(
        MonoCut(
            f"cut-{n}",
            start=0,
            duration=duration,
            channel=0,
            supervisions=[SupervisionSegment(f"cut-{n}", f"cut-{n}", 0, duration)],
        )
        for n, duration in enumerate(seconds)
    )


def plan(cuts: CutSet, **options) -> list[list[str]]:
    options = {"max_duration": 30.0, "num_buckets": 4, **options}
    return [[cut.id for cut in batch] for batch in EpochBatches(cuts, **options)]


CUTS = made_up_cuts(83)
IDS = sorted(cut.id for cut in CUTS)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_training_ranks_have_as_many_batches_and_see_every_cut(world_size: int) -> None:
    single = plan(CUTS)
    ranks = [plan(CUTS, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == -(-len(single) // world_size)
    in_order = [batch for round_ in zip(*ranks, strict=True) for batch in round_]
    assert in_order[: len(single)] == single
    assert all(batch in single for batch in in_order[len(single) :])  # repeated to make ranks even
    assert sorted(id_ for batch in single for id_ in batch) == IDS


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_sees_every_cut_exactly_once_over_all_ranks(world_size: int) -> None:
    seen = Counter(
        id_
        for rank in range(world_size)
        for batch in plan(CUTS, rank=rank, world_size=world_size, shuffle=False, pad_to_world=False)
        for id_ in batch
    )
    assert seen == Counter(IDS)


def test_validation_on_more_ranks_than_batches_gives_the_others_an_empty_one() -> None:
    """A rank without any batch would end a Lightning run."""
    cuts = made_up_cuts(3)
    ranks = [plan(cuts, rank=r, world_size=4, max_duration=100, shuffle=False, pad_to_world=False) for r in range(4)]
    assert sorted(id_ for rank in ranks for batch in rank for id_ in batch) == sorted(c.id for c in cuts)
    assert all(len(rank) == 1 for rank in ranks)
    assert sum(rank == [[]] for rank in ranks) == 3


def test_too_few_training_batches_are_refused_on_every_rank() -> None:
    """Were one rank to go on, it would wait for the others for ever."""
    cuts = made_up_cuts(3)
    for rank in range(4):
        with pytest.raises(UserError, match="max_duration"):
            EpochBatches(cuts, max_duration=100, num_buckets=1, rank=rank, world_size=4)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_resumed_epoch_gets_exactly_the_batches_that_were_left(start: int) -> None:
    for rank in range(2):
        whole = plan(CUTS, rank=rank, world_size=2, epoch=3)
        assert plan(CUTS, rank=rank, world_size=2, epoch=3, start=start) == whole[start:]


def test_the_length_is_that_of_the_whole_epoch() -> None:
    batches = EpochBatches(CUTS, max_duration=30, num_buckets=4)
    assert len(batches) == len(list(batches)) > 10
    assert len(EpochBatches(CUTS, max_duration=30, num_buckets=4, start=5)) == len(batches)


def test_seed_and_epoch_and_nothing_else_determine_the_order() -> None:
    first = plan(CUTS, seed=1, epoch=2)
    np.random.seed(99)  # noqa: NPY002 (the point is that global state does not matter)
    assert plan(CUTS, seed=1, epoch=2) == first
    assert plan(CUTS, seed=2, epoch=2) != first
    assert plan(CUTS, seed=1, epoch=3) != first


def test_no_batch_is_longer_than_it_may_be() -> None:
    seconds = {cut.id: cut.duration for cut in CUTS}
    batches = plan(CUTS)
    assert max(sum(seconds[id_] for id_ in batch) for batch in batches) <= 30
    assert len(batches) < 2 * sum(seconds.values()) / 30


def test_a_cut_longer_than_a_batch_is_a_batch_of_its_own() -> None:
    assert sorted(plan(made_up_cuts(4), max_duration=0.5)) == [[f"cut-{n}"] for n in range(4)]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_very_small_sets_are_seen_whole(count: int) -> None:
    cuts = made_up_cuts(count)
    assert sorted(id_ for batch in plan(cuts, num_buckets=10) for id_ in batch) == [f"cut-{n}" for n in range(count)]


def test_buckets_keep_like_durations_together() -> None:
    """Padding is what buckets are for: with them, batches have less of it than without."""
    seconds = {cut.id: cut.duration for cut in CUTS}

    def padding(num_buckets: int) -> float:
        batches = plan(CUTS, num_buckets=num_buckets)
        padded = sum(len(batch) * max(seconds[id_] for id_ in batch) for batch in batches)
        return 1 - sum(seconds.values()) / padded

    assert padding(8) < padding(1) / 2


def test_every_part_of_a_large_manifest_comes_early() -> None:
    """Lhotse alone would show the last of these cuts only after thousands of others."""
    count = 40_000
    first = plan(made_up_cuts(count), max_duration=200.0)[:20]
    positions = [int(id_.removeprefix("cut-")) for batch in first for id_ in batch]
    assert np.histogram(positions, bins=4, range=(0, count))[0].min() > len(positions) / 8
