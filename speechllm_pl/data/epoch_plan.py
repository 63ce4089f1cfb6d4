"""The plan of an epoch, in arrays: which cuts make which batch.

A plan is a function of the data, the seed and the epoch, made in one go: a run starts anywhere in an epoch as fast
as at its beginning. Batches are numbered over all ranks, so a run that stopped on two goes on with just the batches
that were left on one, or on four.
"""

import zlib
from collections.abc import Iterator
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.buckets import Buckets


class Draw(NamedTuple):
    """The M utterances of an epoch, some perhaps more than once.

    If they are read from shards, the epoch is divided into lanes: parts of equal length, read side by side.
    """

    utterances: np.ndarray  # (M,) int32
    at: np.ndarray | None = None  # (M,) 0 … 1, how far into the epoch each is read; default is anywhere
    lanes: int = 1
    shuffle_buffer: int = 0  # by how many utterances one may be read later


class PlannedBatch(NamedTuple):
    """A batch before it is read."""

    indices: np.ndarray  # (B,) of its cuts
    seed: int  # of everything random about it, 63 bits: the same whichever rank draws it, and after any resume
    epoch: int = 0  # in which it is due: augmentation changes an utterance differently in each
    copies: np.ndarray | None = None  # (B,) how often the epoch has had each before; default is never
    longest: float = 0.0  # seconds of its longest utterance, as planned for; 0 where that is not known


class EpochPlan(NamedTuple):
    """All batches of an epoch over all ranks, in their order."""

    utterances: np.ndarray  # (M,), of which batches are slices
    starts: np.ndarray  # (batches,)
    stops: np.ndarray  # (batches,)

    def members(self, number: int) -> np.ndarray:
        """Utterances of a batch, `(B,)`."""
        return self.utterances[self.starts[number] : self.stops[number]]

    def between(self, first: int, last: int) -> np.ndarray:
        """Utterances of batches `first` to `last - 1`."""
        starts = self.starts[first:last]
        return self.utterances[_ranges(starts, self.stops[first:last] - starts)]

    def digest(self) -> int:
        """Checksum, equal for plans in which a batch's number has the same meaning."""
        return zlib.crc32(self.stops.tobytes(), zlib.crc32(self.utterances.tobytes()))


def plan_epoch(buckets: Buckets, draw: Draw, generator: np.random.Generator | None) -> EpochPlan:
    """Group the utterances of an epoch into batches, and order these.

    In each lane, utterances of a bucket make batches in the order of their times; what is left over of the lanes
    makes batches together. A batch is due at the time of its last utterance. Lanes take turns, batch by batch: so
    ranks and loader processes whose number divides the lanes' have whole lanes each, in the order of the disk as far
    as buffer and buckets leave it.

    Args:
        generator: source of all random numbers. Without one, buckets follow each other in the order of the draw.
    """
    count, bucket = len(draw.utterances), buckets.of[draw.utterances]
    lane, time, by_time = np.zeros(count, np.uint16), np.zeros(count), np.arange(count, dtype=np.int32)
    if generator is not None and draw.at is None:
        generator.shuffle(by_time)
    elif generator is not None and draw.at is not None:
        lane = (draw.at * draw.lanes).astype(np.uint16)
        time = draw.at * count + generator.random(count) * draw.shuffle_buffer
        by_time = np.argsort(time, kind="stable").astype(np.int32)
    order, sizes, whole = _chunked(_sorted(by_time, bucket, lane), bucket, lane, buckets.batch_sizes)
    stops = sizes.cumsum()
    last = order[stops - 1]
    if generator is None:
        turns = np.argsort(bucket[last], kind="stable")
    elif draw.at is None:
        turns = generator.permutation(len(sizes))
    else:
        rest = generator.permutation(np.arange(whole, len(sizes)))
        turns = np.r_[_in_turn(lane[last[:whole]], time[last[:whole]]), rest]
    return EpochPlan(draw.utterances[order], (stops - sizes)[turns], stops[turns])


def _sorted(by_time: np.ndarray, bucket: np.ndarray, lane: np.ndarray) -> np.ndarray:
    """Sort by lane, then bucket, then time. (Stable sorts of 16 bits are radix sorts.)"""
    order = by_time
    for digit in (bucket, lane):
        if digit.any():
            order = order[np.argsort(digit[order], kind="stable")]
    return order


def _chunked(
    order: np.ndarray, bucket: np.ndarray, lane: np.ndarray, batch_sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Cut utterances into batches of their bucket's size, lane by lane.

    Returns:
        The order, with the utterances of no full batch of their lane last, bucket by bucket; `(batches,)` sizes of the
        batches in this order; the number of batches of a single lane.
    """
    lanes, kinds = int(lane[order[-1]]) + 1, len(batch_sizes)
    counts = np.bincount(lane.astype(np.int64) * kinds + bucket, minlength=lanes * kinds)  # (lanes * K,)
    per_batch = np.tile(batch_sizes, lanes)
    full = counts // per_batch
    left = counts - full * per_batch
    at = _ranges(counts.cumsum() - left, left)
    remaining = order[at]
    remaining = remaining[np.argsort(bucket[remaining], kind="stable")]
    last_sizes = _split_evenly(left.reshape(lanes, kinds).sum(axis=0), batch_sizes)
    sizes = np.repeat(per_batch, full)
    return np.r_[np.delete(order, at), remaining], np.r_[sizes, last_sizes], len(sizes)


def _split_evenly(counts: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Sizes of batches when `counts` utterances of each bucket make batches of at most `most`."""
    batches = -(-counts // most)
    sizes = np.repeat(most, batches)
    ends = batches.cumsum()[counts > 0] - 1
    sizes[ends] -= (batches * most - counts)[counts > 0]
    return sizes


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenated ranges, each of `count` numbers from its start."""
    return np.repeat(starts - counts.cumsum() + counts, counts) + np.arange(counts.sum())


def _in_turn(lane: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Order of batches: the first of every lane, the second of every lane …"""
    order = np.lexsort((time, lane))
    counts = np.bincount(lane)
    number = np.empty(len(order), np.int64)  # of each in its lane
    number[order] = _ranges(np.zeros_like(counts), counts)
    return np.lexsort((lane, number))


class EpochBatches(Sampler[PlannedBatch]):
    """One rank's batches of one epoch, from the position of a run in it.

    Args:
        buckets: buckets of the utterances.
        draw: utterances of the epoch; default is every one once.
        seed, epoch: all that the order depends on.
        shuffle: whether batches are in random order, not bucket after bucket in the manifest's order.
        shortest_first: batches of short utterances before those of long ones, which lets CTC find its first
            alignments sooner (SortaGrad, arXiv 1512.02595).
        rank, world_size: batch i belongs to rank i modulo world_size, counted from `start`.
        fill: how all ranks get equally many batches, so that none waits for another: by repeating the epoch's first
            batches, or by batches of no utterance, where metrics must see every utterance once.
        start: batches of the epoch that are done, over all ranks.
        steps: number of steps that the trainer counts for them.

    Raises:
        UserError: batches are to be repeated, but there are fewer than ranks.
    """

    def __init__(
        self,
        buckets: Buckets,
        draw: Draw | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        shortest_first: bool = False,
        rank: int = 0,
        world_size: int = 1,
        fill: Literal["repeat", "empty"] = "repeat",
        start: int = 0,
        steps: int = 0,
    ):
        self.buckets = buckets
        self.draw = draw or Draw(np.arange(len(buckets.of), dtype=np.int32))
        self.batches = buckets.batches_of(self.draw.utterances)
        if fill == "repeat" and self.batches < world_size:  # the same on every rank, so that none waits for another
            raise UserError(f"fewer training batches than processes ({world_size}): lower data.max_duration")
        self.seed = seed
        self.epoch = epoch
        self.shuffle = shuffle
        self.shortest_first = shortest_first
        self.rank = rank
        self.world_size = world_size
        self.fill = fill
        self.start = start
        self.steps = steps

    def __len__(self) -> int:
        """Number of this rank's batches in the whole epoch, with those that are done as the trainer counts them."""
        return self.steps + self._rounds()

    def __iter__(self) -> Iterator[PlannedBatch]:
        plan = self.plan
        for position in range(self.start + self.rank, self.start + self._rounds() * self.world_size, self.world_size):
            fill = position >= self.batches and self.fill == "empty"
            number = position % self.batches
            indices = plan.utterances[:0] if fill else plan.members(number)
            copies = None if self._copies is None or fill else self._copies[plan.starts[number] : plan.stops[number]]
            longest = float(self.buckets.durations[indices].max(initial=0.0))
            yield PlannedBatch(indices, self._seed_of(position), self.epoch, copies, longest)

    @cached_property
    def plan(self) -> EpochPlan:
        """Plan of the whole epoch."""
        # The 1 tells this stream of random numbers from default_rng(0)'s, which others draw from too.
        generator = np.random.default_rng((self.seed, self.epoch, 1)) if self.shuffle else None
        plan = plan_epoch(self.buckets, self.draw, generator)
        if self.shortest_first:
            longest = [self.buckets.durations[plan.members(number)].max() for number in range(self.batches)]
            order = np.argsort(longest, kind="stable")
            plan = plan._replace(starts=plan.starts[order], stops=plan.stops[order])
        return plan

    @cached_property
    def _copies(self) -> np.ndarray | None:
        """Number of earlier occurrences of each of the plan's utterances, `(M,)` uint16; None if none recurs."""
        utterances = self.plan.utterances
        if np.bincount(utterances).max(initial=0) < 2:
            return None
        order = np.argsort(utterances, kind="stable")
        first = np.searchsorted(utterances[order], utterances[order])  # where the run of equal ones begins
        copies = np.empty(len(order), np.uint16)
        copies[order] = np.arange(len(order)) - first
        return copies

    def resumed(self, start: int, steps: int) -> "EpochBatches":
        """Continue the epoch after `start` batches over all ranks, in `steps` steps of the trainer."""
        self.start, self.steps = start, steps
        return self

    def done_after(self, steps: int) -> int:
        """Number of batches done over all ranks when the trainer counts `steps` of this epoch."""
        return min(self.start + (steps - self.steps) * self.world_size, self.batches)

    def _rounds(self) -> int:
        """Number of batches left for each rank."""
        return -((self.start - self.batches) // self.world_size)

    def _seed_of(self, position: int) -> int:
        sequence = np.random.SeedSequence((self.seed, self.epoch), spawn_key=(position,))
        return int(sequence.generate_state(1, np.uint64)[0] >> 1)
