"""An epoch's plan: every cut, as many batches to every rank, and a resumed run gets the rest, on one rank or four."""

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batches import Buckets, Draw, EpochBatches, Plan, PlannedBatch, Positions


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


# bounded by positions too


def made_up_positions(durations: np.ndarray, most: int, seed: int = 9) -> Positions:
    """An embedding every 80 ms, and 2 to 6 tokens of text a second."""
    text = durations * np.random.default_rng(seed).uniform(2, 6, len(durations))
    return Positions(np.ceil(durations * 12.5).astype(np.int32), text.round().astype(np.uint32), most)


def padded(batch: np.ndarray, positions: Positions) -> int:
    return len(batch) * int(positions.audio[batch].max() + 1 + positions.text[batch].max())


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("num_buckets", [1, 2, 7, 30])
@pytest.mark.parametrize("most", [20, 400, 600, 10_000])
def test_no_batch_has_more_positions_or_seconds_than_it_may(spread: str, num_buckets: int, most: int) -> None:
    durations = SPREADS[spread]
    positions = made_up_positions(durations, most)
    buckets = Buckets(durations, 30.0, num_buckets, positions)
    assert len(buckets.counts) == len(np.unique(buckets.of)) <= num_buckets
    batches = [batch.indices for batch in EpochBatches(buckets)]
    assert seen([batch.tolist() for batch in batches]) == Counter(range(len(durations)))
    assert len(batches) == len(buckets)
    for batch in batches:
        assert len(batch) == 1 or padded(batch, positions) <= most
        assert len(batch) == 1 or len(batch) * durations[batch].max() <= 30 * (1 + 1e-5)
    for k, (longest, size) in enumerate(zip(buckets.longest, buckets.batch_sizes, strict=True)):
        of_bucket = np.flatnonzero(buckets.of == k)
        one = int(positions.audio[of_bucket].max() + 1 + positions.text[of_bucket].max())
        assert longest == durations[of_bucket].max()
        assert size == max(1, min(int(30 / float(longest) + 1e-4), most // one))  # as many as fit


def test_buckets_divided_by_text_have_less_padding_than_by_duration_alone() -> None:
    """Where text is about half of the positions: an embedding every 240 ms."""
    durations = np.random.default_rng(1).uniform(10, 20, 4000).astype(np.float32)
    positions = made_up_positions(durations, 733)._replace(audio=np.ceil(durations / 0.24).astype(np.int32))

    def share(buckets: Buckets) -> float:
        batches = [batch.indices for batch in EpochBatches(buckets)]
        real = int(positions.audio.sum() + positions.text.sum(dtype=np.int64)) + len(durations)
        return 1 - real / sum(padded(batch, positions) for batch in batches)

    assert share(Buckets(durations, 80.0, 20, positions)) < 0.75 * share(Buckets(durations, 80.0, 20))


def test_buckets_of_many_are_chosen_by_a_sample_and_hold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechllm_pl.data.batches.SAMPLE", 500)
    durations = np.r_[made_up_durations(5000), np.float32([9.5, 0.2])]  # the extremes may not be in the sample
    positions = made_up_positions(durations, 500)
    for bounded in (None, positions):
        batches = [batch.indices for batch in EpochBatches(Buckets(durations, 30.0, 12, bounded))]
        assert seen([batch.tolist() for batch in batches]) == Counter(range(5002))
        assert all(len(batch) * durations[batch].max() <= 30 * (1 + 1e-5) for batch in batches)
    assert all(padded(batch, positions) <= 500 for batch in batches)


def test_the_largest_batches_have_as_much_padding_as_any_batch_can() -> None:
    durations = made_up_durations(400)
    for most in (60, 500):  # batches of one, and larger ones
        positions = made_up_positions(durations, most)
        buckets = Buckets(durations, 30.0, 10, positions)
        worst = dict.fromkeys(range(len(buckets.counts)), 0)
        for epoch in range(20):
            for batch in EpochBatches(buckets, epoch=epoch):
                k = int(buckets.of[batch.indices[0]])
                worst[k] = max(worst[k], padded(batch.indices, positions))
        for k, batch in enumerate(buckets.largest_batches()):
            assert (buckets.of[batch] == k).all()
            assert len(set(batch.tolist())) == len(batch)
            assert padded(batch, positions) >= worst[k]


def test_no_positions_are_refused() -> None:
    with pytest.raises(UserError, match="max_tokens 0"):
        Buckets(DURATIONS, 30.0, 4, made_up_positions(DURATIONS, 0))


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
def whole_plan() -> Plan:
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
