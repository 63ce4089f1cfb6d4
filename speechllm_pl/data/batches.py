"""Which cuts make which batch: an epoch's plan, in arrays, from lengths alone.

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

SAMPLE = 200_000  # utterances that buckets are chosen by; of more, so many are drawn
CANDIDATES = 250  # durations, spread over these, at which a bucket may end
TEXT_CANDIDATES = 60  # lengths of text, in each bucket of durations
PADDING_WEIGHT = 0.5  # of a batch full of audio and padding against one more batch, in choosing buckets
ROUNDING = 1 + 1e-6  # durations are float32: six of 5 s make 30 s, whatever the last bit
MOST_TEXT = 2**20  # tokens: more than any text has


class Positions(NamedTuple):
    """What N utterances take of the LLM's input, `[instruction][audio][BOS][text]`, where all but BOS is padded."""

    audio: np.ndarray  # (N,) audio embeddings, with what stands before them; grows with the duration
    text: np.ndarray  # (N,) tokens
    most: int  # that a batch may have, padding included


class Buckets:
    """Utterances of like lengths share a bucket, and all batches of a bucket have as many utterances.

    So no batch with its padding is longer than `max_duration`, or has more positions than it may (unless a single
    utterance has), and every epoch of the same utterances has as many batches. With positions, buckets of like
    durations are divided by the length of the text.

    Args:
        durations: `(N,)` seconds.
        max_duration: seconds of audio a batch, padding included.
        num_buckets: how many at most.
        positions: of the LLM, where these are bounded too.

    Raises:
        UserError: `max_duration`, `num_buckets` or the positions of a batch are not above 0.
    """

    def __init__(
        self, durations: np.ndarray, max_duration: float, num_buckets: int, positions: Positions | None = None
    ):
        if not max_duration > 0 or num_buckets < 1:
            raise UserError(f"max_duration {max_duration} and num_buckets {num_buckets}: both must be above 0")
        if positions is not None and positions.most < 1:
            raise UserError(f"max_tokens {positions.most} must be above 0")
        self.durations = durations
        self.positions = positions
        lengths = _Lengths.of(durations, max_duration, positions)
        self.of = _assigned(lengths, num_buckets)  # (N,) uint16, its bucket
        self.counts = np.bincount(self.of)  # (K,) utterances
        self.longest = self._most(durations)  # (K,) seconds
        loads = lengths.loads(*map(self._most, (durations, lengths.audio, lengths.text)))
        self.batch_sizes = _batch_sizes(loads)  # (K,) utterances

    def __len__(self) -> int:
        """Batches of an epoch that has every utterance once, over all ranks."""
        return self._batches(self.counts)

    @property
    def longest_batch(self) -> float:
        """Seconds of audio, padding included, of the longest batch."""
        return float((self.longest.astype(np.float64) * self.batch_sizes).max(initial=0.0))

    def batches_of(self, utterances: np.ndarray) -> int:
        """Batches of an epoch that has these utterances."""
        return self._batches(np.bincount(self.of[utterances], minlength=len(self.counts)))

    def _batches(self, counts: np.ndarray) -> int:
        return int(-(-counts // self.batch_sizes).sum())

    def _most(self, lengths: np.ndarray) -> np.ndarray:
        """`(K,)` the largest of each bucket."""
        most = np.zeros(len(self.counts), lengths.dtype)
        np.maximum.at(most, self.of, lengths)
        return most

    def largest_batches(self) -> list[np.ndarray]:
        """For each bucket as many utterances as make a batch, with the most padding: what memory has to suffice for.

        Those are its longest ones, and the one with the longest text among them.
        """
        members = np.split(np.argsort(self.of, kind="stable"), self.counts.cumsum()[:-1])
        return [self._largest(each, size) for each, size in zip(members, self.batch_sizes, strict=True)]

    def _largest(self, members: np.ndarray, size: int) -> np.ndarray:
        longest = members[np.argsort(-self.durations[members], kind="stable")]
        if self.positions is None:
            return longest[:size]
        audio, text = self.positions.audio[longest], self.positions.text[longest]
        first = np.argmax(text if size > 1 else audio.astype(np.int64) + text)
        return np.r_[longest[first], np.delete(longest, first)[: size - 1]]


class _Lengths(NamedTuple):
    """Of N utterances; audio and text are nothing where positions are not bounded."""

    durations: np.ndarray
    audio: np.ndarray
    text: np.ndarray
    max_duration: float
    max_positions: float

    @classmethod
    def of(cls, durations: np.ndarray, max_duration: float, positions: Positions | None) -> "_Lengths":
        if positions is None:
            nothing = np.broadcast_to(np.uint8(0), durations.shape)
            return cls(durations, nothing, nothing, max_duration, np.inf)
        return cls(durations, positions.audio, positions.text, max_duration, positions.most)

    def chosen(self, rows: np.ndarray) -> "_Lengths":
        return self._replace(durations=self.durations[rows], audio=self.audio[rows], text=self.text[rows])

    def loads(self, durations: np.ndarray, audio: np.ndarray, text: np.ndarray) -> np.ndarray:
        """The share of a batch that an utterance takes when padded to these lengths."""
        return np.maximum(durations.astype(np.float64) / self.max_duration, self.padded(durations, audio, text))

    def padded(self, durations: np.ndarray, audio: np.ndarray, text: np.ndarray) -> np.ndarray:
        """The same as far as padding is to be saved: of positions, where they are bounded."""
        if np.isinf(self.max_positions):
            return durations.astype(np.float64) / self.max_duration
        return (audio.astype(np.float64) + 1 + text) / self.max_positions


def _batch_sizes(loads: np.ndarray) -> np.ndarray:
    """How many utterances fit that take these shares of a batch."""
    return np.maximum(1, ROUNDING / loads).astype(np.int64)


# choosing buckets


def _assigned(lengths: _Lengths, num_buckets: int) -> np.ndarray:
    """`(N,)` uint16: the bucket of each utterance."""
    sample = lengths
    if len(lengths.durations) > SAMPLE:
        sample = lengths.chosen(np.random.default_rng(0).integers(len(lengths.durations), size=SAMPLE))
    durations, texts = _bounds(sample.chosen(np.argsort(sample.durations, kind="stable")), num_buckets)
    row = np.searchsorted(durations[:-1], lengths.durations)
    if len(texts) == len(durations):
        return row.astype(np.uint16)
    return np.searchsorted(texts[:-1], row * MOST_TEXT + lengths.text).astype(np.uint16)


def _bounds(ordered: _Lengths, num_buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Of utterances that are ordered by duration → `(R,)` longest durations of as many rows of buckets, and
    `(K,)` longest texts of the buckets in them, row * MOST_TEXT + tokens.

    Rows come first, from few to as many as there may be buckets; each is divided by length of text as far as that
    saves most. The division of the least cost is taken.
    """
    if np.isinf(ordered.max_positions):
        (_, ends) = min(_divisions(ordered.durations, *_typical(ordered), num_buckets, CANDIDATES))
        return ordered.durations[ends - 1], np.arange(len(ends)) * MOST_TEXT
    ways = _divisions(ordered.durations, *_typical(ordered), num_buckets, CANDIDATES)
    found = [(*_divided_by_text(ordered, ends, num_buckets), ordered.durations[ends - 1]) for _, ends in ways]
    _, texts, durations = min(found, key=lambda each: each[0])
    return durations, texts


def _typical(ordered: _Lengths) -> tuple[np.ndarray, np.ndarray]:
    """Loads and padded lengths of utterances whose texts are as long as is usual for their duration."""
    usual = ordered.durations * (ordered.text.sum(dtype=np.float64) / ordered.durations.sum(dtype=np.float64))
    lengths = ordered.durations, ordered.audio, usual
    return ordered.loads(*lengths), ordered.padded(*lengths)


def _divided_by_text(ordered: _Lengths, ends: np.ndarray, num_buckets: int) -> tuple[float, np.ndarray]:
    """Divide rows of buckets, which end there → the cost, and the `(K,)` bounds as `_bounds` gives them."""
    ways, texts = [], []
    most = num_buckets - len(ends) + 1  # in one row
    for begin, end in zip(np.r_[0, ends[:-1]], ends, strict=True):
        text = np.sort(ordered.text[begin:end])
        padded_to = ordered.durations[end - 1], ordered.audio[end - 1], text
        loads, padded = ordered.loads(*padded_to), ordered.padded(*padded_to)
        ways.append(_divisions(text, loads, padded, most, TEXT_CANDIDATES))
        texts.append(text)
    chosen = [0] * len(ends)  # which way of each row
    for _ in range(num_buckets - len(ends)):
        gains = [
            way[at][0] - way[at + 1][0] if at + 1 < len(way) else 0.0 for way, at in zip(ways, chosen, strict=True)
        ]
        if max(gains) <= 0:
            break
        chosen[int(np.argmax(gains))] += 1
    picked = [way[at] for way, at in zip(ways, chosen, strict=True)]
    bounds = [
        row * MOST_TEXT + text[stops - 1].astype(np.int64)
        for row, (text, (_, stops)) in enumerate(zip(texts, picked, strict=True))
    ]
    return sum(cost for cost, _ in picked), np.concatenate(bounds)


def _divisions(
    lengths: np.ndarray, loads: np.ndarray, padded: np.ndarray, most: int, candidates: int
) -> list[tuple[float, np.ndarray]]:
    """The best ways to cut a list of utterances, ordered by length, into 1, 2 … `most` buckets.

    By dynamic programming over candidates. Each is stretched as far as utterances fit a batch in the same number.

    Args:
        lengths: `(n,)`, by which the list is ordered; equal ones stay together.
        loads: `(n,)` share of a batch that an utterance takes when padded up to here, not decreasing.
        padded: `(n,)` the same as far as padding is to be saved.

    Returns:
        For each number of buckets the cost in batches, and `(k,)` where in the list they end.
    """
    sizes = _batch_sizes(loads)
    spread = np.linspace(0, len(lengths) - 1, candidates).astype(np.int64)
    ends = np.searchsorted(lengths, lengths[spread], side="right")
    stretched = np.searchsorted(-sizes, -sizes[ends - 1], side="right")
    ends = np.unique(np.r_[ends, stretched])  # (C,)
    inside = ends[None, :] - np.r_[0, ends][:, None]  # (C + 1, C) in a bucket after candidate i - 1 up to j
    cost = np.ceil(inside / sizes[ends - 1]) + PADDING_WEIGHT * inside * padded[ends - 1]
    cost = np.where(inside > 0, cost, np.inf)

    best = np.r_[0.0, np.full(len(ends), np.inf)]  # (C + 1,) least cost of all up to a candidate
    came_from, ways = [], []
    for _ in range(min(most, len(ends))):
        through = best[:, None] + cost
        came_from.append(through.argmin(axis=0))
        best = np.r_[np.inf, through.min(axis=0)]
        ways.append((float(best[-1]), ends[_traced(came_from)]))
    return ways


def _traced(came_from: list[np.ndarray]) -> list[int]:
    """Which candidates the best division goes through, from the last back to the first."""
    at, chosen = len(came_from[-1]), []
    for previous in reversed(came_from):
        chosen.append(at - 1)
        at = previous[at - 1]
    return chosen[::-1]


# an epoch


class Draw(NamedTuple):
    """The M utterances that an epoch has, some perhaps more than once.

    Where they are read from shards, the epoch is cut into lanes: parts of equal length, that are read side by side.
    """

    utterances: np.ndarray  # (M,) int32
    at: np.ndarray | None = None  # (M,) 0 … 1, how far into the epoch each is read; default is anywhere
    lanes: int = 1
    shuffle_buffer: int = 0  # by how many utterances one may be read later


class PlannedBatch(NamedTuple):
    """What is known of a batch before it is read."""

    indices: np.ndarray  # (B,) of its cuts
    seed: int  # of everything random about it, 63 bits: the same whichever rank draws it, and after any resume
    epoch: int = 0  # in which it is due: augmentation changes an utterance differently in each
    copies: np.ndarray | None = None  # (B,) how often the epoch has had each before; default is never
    longest: float = 0.0  # seconds of its longest utterance, as planned for; 0 where that is not known


class Plan(NamedTuple):
    """All batches of an epoch over all ranks, in their order."""

    utterances: np.ndarray  # (M,), of which batches are slices
    starts: np.ndarray  # (batches,)
    stops: np.ndarray  # (batches,)

    def members(self, number: int) -> np.ndarray:
        """`(B,)` the utterances of a batch."""
        return self.utterances[self.starts[number] : self.stops[number]]

    def between(self, first: int, last: int) -> np.ndarray:
        """The utterances of batches `first` to `last - 1`."""
        starts = self.starts[first:last]
        return self.utterances[_ranges(starts, self.stops[first:last] - starts)]

    def digest(self) -> int:
        """Of a plan in which a batch's number means the same."""
        return zlib.crc32(self.stops.tobytes(), zlib.crc32(self.utterances.tobytes()))


def plan_epoch(buckets: Buckets, draw: Draw, generator: np.random.Generator | None) -> Plan:
    """Make batches of the utterances of an epoch, and put them into an order.

    In each lane, utterances of a bucket make batches in the order of their times; what is left over of the lanes
    makes batches together. A batch is due at the time of its last utterance. Lanes take turns, batch by batch: so
    ranks and loader processes whose number divides the lanes' have whole lanes each, in the order of the disk as far
    as buffer and buckets leave it.

    Args:
        generator: of all that is random. Without one, buckets follow each other in the order of the draw.
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
    return Plan(draw.utterances[order], (stops - sizes)[turns], stops[turns])


def _sorted(by_time: np.ndarray, bucket: np.ndarray, lane: np.ndarray) -> np.ndarray:
    """Lane by lane, in it bucket by bucket, in that by time. (Stable sorts of 16 bits are radix sorts.)"""
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
        The order, in which those come last that no full batch of their lane has, bucket by bucket; `(batches,)` how
        many of it each batch has; how many batches are of one lane.
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
    """How many each batch has when `counts` of every bucket make batches of at most so many."""
    batches = -(-counts // most)
    sizes = np.repeat(most, batches)
    ends = batches.cumsum()[counts > 0] - 1
    sizes[ends] -= (batches * most - counts)[counts > 0]
    return sizes


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Each start and the numbers after it, as many as its count, one range after the other."""
    return np.repeat(starts - counts.cumsum() + counts, counts) + np.arange(counts.sum())


def _in_turn(lane: np.ndarray, time: np.ndarray) -> np.ndarray:
    """An order of batches: the first of every lane, the second of every lane …"""
    order = np.lexsort((time, lane))
    counts = np.bincount(lane)
    number = np.empty(len(order), np.int64)  # of each in its lane
    number[order] = _ranges(np.zeros_like(counts), counts)
    return np.lexsort((lane, number))


class EpochBatches(Sampler[PlannedBatch]):
    """One rank's batches of one epoch, from where a run stands in it.

    Args:
        buckets: of the utterances.
        draw: what the epoch has of them; default is every one once.
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
        """Batches of this rank in the whole epoch: the trainer counts those that are done as seen."""
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
    def plan(self) -> Plan:
        """The whole epoch's."""
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
        """`(M,)` uint16 how often each of the plan's utterances stands before in it; None where none does."""
        utterances = self.plan.utterances
        if np.bincount(utterances).max(initial=0) < 2:
            return None
        order = np.argsort(utterances, kind="stable")
        first = np.searchsorted(utterances[order], utterances[order])  # where the run of equal ones begins
        copies = np.empty(len(order), np.uint16)
        copies[order] = np.arange(len(order)) - first
        return copies

    def resumed(self, start: int, steps: int) -> "EpochBatches":
        """The same epoch, of which so many batches are done over all ranks, in so many steps of the trainer."""
        self.start, self.steps = start, steps
        return self

    def done_after(self, steps: int) -> int:
        """Batches done over all ranks when the trainer counts `steps` of this epoch."""
        return min(self.start + (steps - self.steps) * self.world_size, self.batches)

    def _rounds(self) -> int:
        """How many batches are left for each rank."""
        return -((self.start - self.batches) // self.world_size)

    def _seed_of(self, position: int) -> int:
        sequence = np.random.SeedSequence((self.seed, self.epoch), spawn_key=(position,))
        return int(sequence.generate_state(1, np.uint64)[0] >> 1)
