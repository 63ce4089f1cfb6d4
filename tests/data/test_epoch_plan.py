"""An epoch's plan: every cut, as many batches to every rank, and a resumed run gets the rest, on one rank or four."""

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from durations import DURATIONS, ONCE, SPREADS, made_up_durations, plan, seen
from torch.utils.data import DataLoader, Dataset

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.epoch_plan import Draw, EpochBatches, EpochPlan, PlannedBatch


def in_turn(ranks: list[list]) -> list:
    """What the ranks do, in the order of steps."""
    return [batch for step in zip(*ranks, strict=True) for batch in step]


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


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_very_small_sets_are_seen_whole(count: int) -> None:
    assert seen(plan(made_up_durations(count), num_buckets=10)) == Counter(range(count))


def test_every_part_of_a_large_manifest_comes_early() -> None:
    count = 40_000
    positions = [index for batch in plan(made_up_durations(count), max_duration=200.0)[:20] for index in batch]
    assert np.histogram(positions, bins=4, range=(0, count))[0].min() > len(positions) / 8


# read from shards, in lanes

LANES, SHUFFLED, SHARD = 24, 40, 100  # lanes, utterances of the buffer, utterances a shard
MANY = made_up_durations(12_000)
MANY_BUCKETS = Buckets(MANY, 30.0, 4)


def from_shards(lanes: int = LANES, buffer: int = SHUFFLED) -> Draw:
    """An epoch of shards in a random order, each as it lies on the disk."""
    shards = np.random.default_rng(5).permutation(len(MANY) // SHARD)
    utterances = (shards[:, None] * SHARD + np.arange(SHARD)).ravel().astype(np.int32)
    return Draw(utterances, (np.arange(len(MANY)) + 0.3) / len(MANY), lanes, buffer)


class Noted(Dataset):
    """Which worker was asked for what."""

    def __getitem__(self, planned: PlannedBatch) -> tuple[int, list[int]]:
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        return -1 if info is None else info.id, planned.indices.tolist()


def read_by(rank: int, ranks: int, workers: int, start: int = 0) -> list[list[list[int]]]:
    """What each worker of a rank reads, batch by batch: PyTorch gives them batches in turn."""
    own = EpochBatches(MANY_BUCKETS, from_shards(), rank=rank, world_size=ranks, fill="empty", start=start)
    batches = [batch.indices.tolist() for batch in own]
    return [batches[worker :: max(1, workers)] for worker in range(max(1, workers))]


@pytest.mark.parametrize("workers", [1, 3])
def test_pytorch_gives_workers_batches_in_turn(workers: int) -> None:
    """Which `read_by` supposes."""
    sampler = EpochBatches(MANY_BUCKETS, from_shards(), rank=1, world_size=3, fill="empty")
    found: list[list[list[int]]] = [[] for _ in range(workers)]
    for worker, batch in DataLoader(Noted(), sampler=sampler, batch_size=None, num_workers=workers):
        found[worker].append(batch)
    assert found == read_by(1, 3, workers)


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("workers", range(5))
def test_from_shards_nothing_is_read_twice_or_lost(ranks: int, workers: int) -> None:
    for start in (0, 1, 500):
        readers = [reader for rank in range(ranks) for reader in read_by(rank, ranks, workers, start)]
        counts = seen([batch for reader in readers for batch in reader])
        done = seen([batch.tolist() for batch in map(whole_plan().members, range(start))])
        assert counts + done == Counter(range(len(MANY)))


@pytest.mark.parametrize("ranks", range(1, 9))
def test_training_fills_its_last_round_with_the_first_batches_and_with_nothing_else(ranks: int) -> None:
    plan = whole_plan()
    for start in (0, 1, 500):
        own = [
            list(EpochBatches(MANY_BUCKETS, from_shards(), rank=r, world_size=ranks, start=start)) for r in range(ranks)
        ]
        assert len({len(batches) for batches in own}) == 1
        in_turn = [batch.indices.tolist() for round_ in zip(*own, strict=True) for batch in round_]
        whole = [plan.members(number).tolist() for number in range(len(plan.starts))]
        doubled = len(in_turn) - (len(whole) - start)
        assert 0 <= doubled < ranks
        assert in_turn == whole[start:] + whole[:doubled]


@cache
def whole_plan() -> EpochPlan:
    return EpochBatches(MANY_BUCKETS, from_shards()).plan


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 4), (2, 3), (3, 4), (4, 2), (6, 4), (8, 3), (8, 1)])
@pytest.mark.parametrize("start", [0, 7])
def test_readers_whose_number_divides_the_lanes_read_as_the_disk_has_it(ranks: int, workers: int, start: int) -> None:
    """Each has lanes of its own, and in a lane no utterance of a bucket comes later than the buffer allows."""
    assert LANES % (ranks * max(1, workers)) == 0
    place = np.empty(len(MANY), np.int64)
    place[from_shards().utterances] = np.arange(len(MANY))  # of each utterance in the epoch's reading
    lane = place * LANES // len(MANY)
    kept = turns_of_all_lanes()
    owner: dict[int, tuple[int, int]] = {}
    for rank in range(ranks):
        own = EpochBatches(MANY_BUCKETS, from_shards(), rank=rank, world_size=ranks, fill="empty", start=start)
        for step, batch in enumerate(own):
            if start + rank + step * ranks >= kept:  # what is left over at the end
                break
            (of_batch,) = set(lane[batch.indices].tolist())
            assert owner.setdefault(of_batch, (rank, step % max(1, workers))) == (rank, step % max(1, workers))
    assert len(owner) == LANES
    for number in range(LANES):
        read = [whole_plan().members(batch) for batch in range(number, kept, LANES)]
        for bucket in range(len(MANY_BUCKETS.counts)):
            places = np.concatenate([place[batch] for batch in read if MANY_BUCKETS.of[batch[0]] == bucket])
            assert (np.maximum.accumulate(places) - places).max() < SHUFFLED
        last = [int(place[batch].max()) for batch in read]  # and batches come as they are complete
        assert all(after > before - SHUFFLED for before, after in pairwise(last))


@cache
def turns_of_all_lanes() -> int:
    """Up to which batch every lane has its turn: before what is left over."""
    plan, place = whole_plan(), np.empty(len(MANY), np.int64)
    place[from_shards().utterances] = np.arange(len(MANY))
    lanes = [set((place[plan.members(number)] * LANES // len(MANY)).tolist()) for number in range(len(plan.starts))]
    in_turn = next(n for n, of_batch in enumerate(lanes) if of_batch != {n % LANES})
    assert in_turn > 0.85 * len(lanes)
    return in_turn // LANES * LANES


def test_the_buffer_shuffles_within_a_shard_and_lanes_are_of_equal_length() -> None:
    still, shuffled = (
        EpochBatches(MANY_BUCKETS, from_shards(buffer=buffer)).plan.utterances for buffer in (0, SHUFFLED)
    )
    assert still.tolist() != shuffled.tolist()
    again = EpochBatches(MANY_BUCKETS, from_shards(), epoch=1).plan.utterances
    assert shuffled.tolist() != again.tolist()


@pytest.mark.parametrize("lanes", [1, 7, 24, 5000])
def test_any_number_of_lanes_gives_as_many_batches(lanes: int) -> None:
    batches = EpochBatches(MANY_BUCKETS, from_shards(lanes=lanes))
    found = [batch.indices.tolist() for batch in batches]
    assert seen(found) == Counter(range(len(MANY)))
    assert len(found) == batches.batches == len(MANY_BUCKETS)


def test_an_epoch_may_have_utterances_more_than_once() -> None:
    utterances = np.r_[np.arange(50), np.arange(20), np.arange(5)].astype(np.int32)
    batches = EpochBatches(Buckets(DURATIONS, 30.0, 4), Draw(utterances))
    found = [batch.indices.tolist() for batch in batches]
    assert seen(found) == Counter(utterances.tolist())
    assert len(found) == batches.batches


def test_plans_that_differ_have_other_digests() -> None:
    plans = [
        *(EpochBatches(MANY_BUCKETS, from_shards(), epoch=epoch).plan for epoch in (0, 1)),
        EpochBatches(MANY_BUCKETS, from_shards(lanes=8)).plan,
        EpochBatches(MANY_BUCKETS, from_shards(buffer=41)).plan,
        EpochBatches(Buckets(MANY, 29.0, 4), from_shards()).plan,
    ]
    assert len({plan.digest() for plan in plans}) == len(plans)
    assert whole_plan().digest() == plans[0].digest()
