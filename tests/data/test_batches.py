"""An epoch's plan: every cut, as many batches to every rank, and a resumed run gets the rest, on one rank or four."""

from collections import Counter

import numpy as np
import pytest

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batches import Buckets, EpochBatches, PlannedBatch


def made_up_durations(count: int, seed: int = 0) -> np.ndarray:
    """1 to 9 seconds."""
    return np.random.default_rng(seed).uniform(1, 9, count).round(2).astype(np.float32)


def plan(durations: np.ndarray, *, max_duration: float = 30.0, num_buckets: int = 4, **options) -> list[list[int]]:
    batches = EpochBatches(Buckets(durations, max_duration, num_buckets), **options)
    return [batch.indices.tolist() for batch in batches]


def in_turn(ranks: list[list]) -> list:
    """What the ranks do, in the order of steps."""
    return [batch for step in zip(*ranks, strict=True) for batch in step]


def seen(batches: list[list[int]]) -> Counter:
    return Counter(index for batch in batches for index in batch)


DURATIONS = made_up_durations(83)
ONCE = Counter(range(83))
SPREADS = {
    "uniform": DURATIONS,
    "all the same": np.full(50, 3.7, np.float32),
    "two lengths": np.repeat(np.float32([1.5, 6.0]), [40, 30]),
    "some longer than a batch": np.r_[DURATIONS, np.float32([31, 45.5, 100])],
    "a long tail": np.random.default_rng(1).lognormal(1, 1, 300).clip(0.1, 200).astype(np.float32),
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("num_buckets", [1, 2, 10, 100])
def test_an_epoch_has_every_cut_once_and_no_batch_is_longer_than_it_may_be(spread: str, num_buckets: int) -> None:
    durations = SPREADS[spread]
    for epoch in range(3):
        batches = plan(durations, num_buckets=num_buckets, epoch=epoch)
        assert seen(batches) == Counter(range(len(durations)))
        assert len(batches) == len(plan(durations, num_buckets=num_buckets))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * durations[batch].max() <= 30 * (1 + 1e-5)


@pytest.mark.parametrize("spread", SPREADS)
def test_all_batches_of_a_bucket_are_of_its_size_but_for_the_last(spread: str) -> None:
    durations = SPREADS[spread]
    buckets = Buckets(durations, 30.0, 4)
    assert len(buckets.longest) <= 4
    sizes: dict[int, list[int]] = {}
    for batch in EpochBatches(buckets):
        bounds = [float(bound) for bound in buckets.longest]
        inside = {sum(bound < durations[index] for bound in bounds) for index in batch.indices}
        sizes.setdefault(inside.pop(), []).append(len(batch.indices))
        assert not inside
    for bucket, size in enumerate(buckets.batch_sizes):
        assert size == max(1, int(30 / float(buckets.longest[bucket]) + 1e-4))
        full = sizes[bucket].count(size)
        assert full >= len(sizes[bucket]) - 1
        assert max(sizes[bucket]) <= size


def test_buckets_are_chosen_for_few_batches() -> None:
    """Against bounds at equal counts, the obvious choice."""
    durations = made_up_durations(3000)
    bounds = np.sort(durations)[np.arange(1, 7) * 500 - 1]
    at_equal_counts = sum(-(-500 // int(30 / bound)) for bound in bounds)
    assert len(Buckets(durations, 30.0, 6)) < 0.95 * at_equal_counts


def test_the_largest_batches_are_the_longest_utterances_of_each_bucket() -> None:
    buckets = Buckets(DURATIONS, 30.0, 4)
    largest = buckets.largest_batches()
    bounds = [0.0, *map(float, buckets.longest)]
    for k, batch in enumerate(largest):
        inside = sorted(d for d in map(float, DURATIONS) if bounds[k] < d <= bounds[k + 1])
        assert sorted(DURATIONS[batch].tolist()) == inside[-int(buckets.batch_sizes[k]) :]
        assert DURATIONS[batch].max() == buckets.longest[k]
    assert len(largest) == len(buckets.longest) == 4


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_training_ranks_have_as_many_batches_and_see_every_cut(world_size: int) -> None:
    single = plan(DURATIONS)
    ranks = [plan(DURATIONS, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == -(-len(single) // world_size)
    together = in_turn(ranks)
    assert together[: len(single)] == single
    assert together[len(single) :] == single[: len(together) - len(single)]  # repeated to make ranks even
    assert seen(single) == ONCE


@pytest.mark.parametrize("world_size", [1, 2, 3, 40])
def test_validation_sees_every_cut_exactly_once_and_ranks_have_as_many_batches(world_size: int) -> None:
    options = {"world_size": world_size, "shuffle": False, "fill": "empty"}
    ranks = [plan(DURATIONS, rank=rank, **options) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) >= 1
    assert seen(in_turn(ranks)) == ONCE


@pytest.mark.parametrize(("max_duration", "num_buckets"), [(0.0, 4), (-1.0, 4), (float("nan"), 4), (30.0, 0)])
def test_no_seconds_and_no_buckets_are_refused(max_duration: float, num_buckets: int) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        Buckets(DURATIONS, max_duration, num_buckets)


def test_too_few_training_batches_are_refused_on_every_rank() -> None:
    """Were one rank to go on, it would wait for the others for ever."""
    for rank in range(4):
        with pytest.raises(UserError, match="max_duration"):
            EpochBatches(Buckets(made_up_durations(3), 100, 1), rank=rank, world_size=4)


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_run_stopped_after_any_step_gets_the_batches_that_were_left(before: int, after: int) -> None:
    buckets = Buckets(DURATIONS, 30.0, 4)
    whole = plan(DURATIONS, epoch=3)
    stopped = EpochBatches(buckets, epoch=3, world_size=before)
    for steps in range(len(stopped) + 1):
        done = stopped.done_after(steps)
        ranks = [
            EpochBatches(buckets, epoch=3, rank=rank, world_size=after, start=done, steps=steps)
            for rank in range(after)
        ]
        left = in_turn([[batch.indices.tolist() for batch in rank] for rank in ranks])
        assert left[: len(whole) - done] == whole[done:]
        assert len(left) - (len(whole) - done) < after
        assert {len(rank) for rank in ranks} == {steps + len(left) // after}
        again = ranks[0].done_after(steps + 1)  # stopped a second time, a step later
        assert again == min(done + after, len(whole))
    assert done == len(whole)
    assert left == []


def test_a_batch_has_the_same_seed_on_every_rank_and_after_every_resume() -> None:
    def seeds(**options) -> list[int]:
        return [batch.seed for batch in EpochBatches(Buckets(DURATIONS, 30.0, 4), **{"epoch": 1, **options})]

    single = seeds()
    ranks = [seeds(rank=rank, world_size=3) for rank in range(3)]
    assert in_turn(ranks)[: len(single)] == single
    assert seeds(start=5) == single[5:]
    assert seeds(start=4, rank=1, world_size=2)[: len(single[5::2])] == single[5::2]


def test_seeds_of_batches_differ_and_are_mixed_well() -> None:
    buckets = Buckets(made_up_durations(2000), 10.0, 4)
    seeds = [
        batch.seed for seed in range(3) for epoch in range(3) for batch in EpochBatches(buckets, seed=seed, epoch=epoch)
    ]
    assert len(set(seeds)) == len(seeds) > 3000
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / len(seeds) ** 0.5  # five standard deviations


def test_a_planned_batch_holds_indices_and_a_seed_of_its_own() -> None:
    first, second, *_ = EpochBatches(Buckets(DURATIONS, 30.0, 4))
    assert isinstance(first, PlannedBatch)
    assert first.indices.dtype == np.int32
    assert first.seed != second.seed


def test_seed_and_epoch_and_nothing_else_determine_the_order() -> None:
    first = plan(DURATIONS, seed=1, epoch=2)
    np.random.seed(99)  # noqa: NPY002 (the point is that global state does not matter)
    assert plan(DURATIONS, seed=1, epoch=2) == first
    assert plan(DURATIONS, seed=2, epoch=2) != first
    assert plan(DURATIONS, seed=1, epoch=3) != first
    assert plan(DURATIONS, seed=2, epoch=1) != first


def test_without_shuffling_buckets_follow_each_other_in_the_order_of_the_manifest() -> None:
    batches = plan(DURATIONS, shuffle=False)
    assert batches == plan(DURATIONS, shuffle=False, seed=7, epoch=7)
    longest = Buckets(DURATIONS, 30.0, 4).longest
    keys = [(int((longest < DURATIONS[index]).sum()), index) for batch in batches for index in batch]
    assert keys == sorted(keys)


def test_shortest_first_goes_up_and_still_shuffles() -> None:
    batches = plan(DURATIONS, shortest_first=True)
    longest = [DURATIONS[batch].max() for batch in batches]
    assert longest == sorted(longest)
    assert seen(batches) == ONCE
    assert batches != plan(DURATIONS, shortest_first=True, epoch=1)


def test_a_cut_longer_than_a_batch_is_a_batch_of_its_own() -> None:
    assert sorted(plan(made_up_durations(4), max_duration=0.5)) == [[n] for n in range(4)]


def test_six_of_a_sixth_fill_a_batch() -> None:
    """Also where float32 cannot hold the duration."""
    for seconds in (0.1, 0.3, 1.1, 1.7, 4.9):
        batches = plan(np.full(60, seconds, np.float32), max_duration=6 * seconds)
        assert {len(batch) for batch in batches} == {6}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_very_small_sets_are_seen_whole(count: int) -> None:
    assert seen(plan(made_up_durations(count), num_buckets=10)) == Counter(range(count))


def test_buckets_keep_like_durations_together() -> None:
    """Padding is what buckets are for: with them, batches have less of it than without."""

    def padding(num_buckets: int) -> float:
        batches = plan(made_up_durations(500), num_buckets=num_buckets)
        padded = sum(len(batch) * made_up_durations(500)[batch].max() for batch in batches)
        return 1 - made_up_durations(500).sum() / padded

    assert padding(8) < padding(1) / 2


def test_every_part_of_a_large_manifest_comes_early() -> None:
    count = 40_000
    positions = [index for batch in plan(made_up_durations(count), max_duration=200.0)[:20] for index in batch]
    assert np.histogram(positions, bins=4, range=(0, count))[0].min() > len(positions) / 8
