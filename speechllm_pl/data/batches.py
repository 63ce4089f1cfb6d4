"""Which cuts make which batch: an epoch's plan, in arrays, from durations alone.

A plan is a function of the data, the seed and the epoch, made in one go: a run starts anywhere in an epoch as fast
as at its beginning. Batches are numbered over all ranks, so a run that stopped on two goes on with just the batches
that were left on one, or on four.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from speechllm_pl.core.errors import UserError

CANDIDATES = 250  # durations, spread over all utterances, at which a bucket may end
PADDING_WEIGHT = 0.5  # of `max_duration` seconds of audio and padding against one more batch, in choosing buckets
ROUNDING = 1 + 1e-6  # durations are float32: six of 5 s make 30 s, whatever the last bit


class Buckets:
    """Utterances of like durations share a bucket, and all batches of a bucket have as many utterances.

    So no batch with its padding is longer than `max_duration` (unless a single utterance is), and every epoch
    has as many batches.

    Args:
        durations: `(N,)` seconds.
        max_duration: seconds of audio a batch, padding included.
        num_buckets: how many at most.

    Raises:
        UserError: `max_duration` or `num_buckets` is not above 0.
    """

    def __init__(self, durations: np.ndarray, max_duration: float, num_buckets: int):
        if not max_duration > 0 or num_buckets < 1:
            raise UserError(f"max_duration {max_duration} and num_buckets {num_buckets}: both must be above 0")
        self.durations = durations
        self.longest = _bounds(durations, max_duration, num_buckets)  # (K,) seconds, increasing
        self.batch_sizes = _batch_sizes(self.longest, max_duration)  # (K,) utterances
        bucket = np.searchsorted(self.longest, durations).astype(np.uint16)
        self.members = np.argsort(bucket, kind="stable").astype(np.int32)  # (N,) by bucket, then as in the manifest
        self.stops = np.bincount(bucket, minlength=len(self.longest)).cumsum()  # (K,) of each bucket in `members`
        self.starts = np.r_[0, self.stops[:-1]]
        chunks = [np.arange(*each) for each in zip(self.starts, self.stops, self.batch_sizes, strict=True)]
        self.batch_starts = np.concatenate(chunks)  # (batches,) where each begins in `members`, however ordered
        self.batch_stops = np.r_[self.batch_starts[1:], len(durations)]

    def __len__(self) -> int:
        """Batches of an epoch, over all ranks."""
        return len(self.batch_starts)

    def largest_batches(self) -> list[np.ndarray]:
        """For each bucket its longest utterances, as many as make a batch: what memory has to suffice for."""
        return [
            members[np.argsort(-self.durations[members], kind="stable")[:size]]
            for members, size in zip(np.split(self.members, self.stops[:-1]), self.batch_sizes, strict=True)
        ]


def _batch_sizes(longest: np.ndarray, max_duration: float) -> np.ndarray:
    """How many utterances of `longest` seconds fit."""
    return np.maximum(1, max_duration / longest.astype(np.float64) * ROUNDING).astype(np.int64)


def _bounds(durations: np.ndarray, max_duration: float, num_buckets: int) -> np.ndarray:
    """`(K,)` longest durations of at most `num_buckets` buckets, chosen for few batches and little padding.

    By dynamic programming over candidates. Each is stretched as far as utterances fit a batch in the same number.
    """
    ordered = np.sort(durations)
    spread = ordered[np.linspace(0, len(ordered) - 1, CANDIDATES).astype(np.int64)]
    reach = max_duration / _batch_sizes(spread, max_duration) * ROUNDING
    stretched = ordered[np.maximum(np.searchsorted(ordered, reach, side="right") - 1, 0)]
    uppers = np.unique(np.r_[spread, np.maximum(spread, stretched)])  # (C,)
    counts = np.searchsorted(ordered, uppers, side="right")  # (C,) utterances up to each
    inside = counts[None, :] - np.r_[0, counts][:, None]  # (C + 1, C) in a bucket after candidate i - 1 up to j
    cost = np.ceil(inside / _batch_sizes(uppers, max_duration)) + PADDING_WEIGHT * inside * uppers / max_duration
    cost = np.where(inside > 0, cost, np.inf)

    best = np.r_[0.0, np.full(len(uppers), np.inf)]  # (C + 1,) least cost of all up to a candidate
    came_from, totals = [], []
    for _ in range(num_buckets):
        through = best[:, None] + cost
        came_from.append(through.argmin(axis=0))
        best = np.r_[np.inf, through.min(axis=0)]
        totals.append(best[-1])
    at, chosen = len(uppers), []
    for previous in reversed(came_from[: int(np.argmin(totals)) + 1]):
        chosen.append(uppers[at - 1])
        at = previous[at - 1]
    return np.array(chosen[::-1])


class PlannedBatch(NamedTuple):
    """What is known of a batch before it is read."""

    indices: np.ndarray  # (B,) of its cuts
    seed: int  # of everything random about it, 63 bits: the same whichever rank draws it, and after any resume
    epoch: int = 0  # in which it is due: augmentation changes an utterance differently in each


class EpochBatches(Sampler[PlannedBatch]):
    """One rank's batches of one epoch, from where a run stands in it.

    Args:
        buckets: of the utterances.
        seed, epoch: the order is a function of both, and of nothing else.
        shuffle: else bucket after bucket, in the manifest's order.
        shortest_first: batches of short utterances before those of long ones, which lets CTC find its first
            alignments sooner (SortaGrad, arXiv 1512.02595).
        rank, world_size: batch i belongs to rank i modulo world_size, counted from `start`.
        fill: what ranks get so that all have as many and none waits for another: the epoch's first batches once
            more, or batches of no utterance, since metrics must see every utterance once.
        start: batches of the epoch that are done already, over all ranks.
        steps: as how many the trainer counts them.

    Raises:
        UserError: there are fewer batches than ranks, and they are to be repeated.
    """

    def __init__(
        self,
        buckets: Buckets,
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
        if fill == "repeat" and len(buckets) < world_size:  # the same on every rank, so that none waits for another
            raise UserError(f"fewer training batches than processes ({world_size}): lower data.max_duration")
        self.buckets = buckets
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
        """Batches of this rank in the whole epoch: the trainer counts those that are done as seen."""
        return self.steps + self._rounds()

    def __iter__(self) -> Iterator[PlannedBatch]:
        order, batches = self._plan()
        for position in range(self.start + self.rank, self.start + self._rounds() * self.world_size, self.world_size):
            yield PlannedBatch(self._indices(order, batches, position), self._seed_of(position), self.epoch)

    def done_after(self, steps: int) -> int:
        """Batches done over all ranks when the trainer counts `steps` of this epoch."""
        return min(self.start + (steps - self.steps) * self.world_size, len(self.buckets))

    def _rounds(self) -> int:
        """How many batches are left for each rank."""
        return -((self.start - len(self.buckets)) // self.world_size)

    def _plan(self) -> tuple[np.ndarray, np.ndarray]:
        """→ `(N,)` utterances, of which the buckets' batches are slices, and `(batches,)` the order of these."""
        order, batches = self.buckets.members, np.arange(len(self.buckets))
        if self.shuffle:
            generator = np.random.default_rng(np.random.SeedSequence((self.seed, self.epoch)))
            order = order.copy()
            for begin, end in zip(self.buckets.starts, self.buckets.stops, strict=True):
                generator.shuffle(order[begin:end])
            generator.shuffle(batches)
        if self.shortest_first:
            longest = np.maximum.reduceat(self.buckets.durations[order], self.buckets.batch_starts)
            batches = batches[np.argsort(longest[batches], kind="stable")]
        return order, batches

    def _indices(self, order: np.ndarray, batches: np.ndarray, position: int) -> np.ndarray:
        if position >= len(batches) and self.fill == "empty":
            return order[:0]
        number = batches[position % len(batches)]
        return order[self.buckets.batch_starts[number] : self.buckets.batch_stops[number]]

    def _seed_of(self, position: int) -> int:
        sequence = np.random.SeedSequence((self.seed, self.epoch), spawn_key=(position,))
        return int(sequence.generate_state(1, np.uint64)[0] >> 1)
