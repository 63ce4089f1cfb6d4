"""Divide utterances into buckets of similar lengths, for few batches and little padding."""

from typing import NamedTuple

import numpy as np

from speechllm_pl.core.errors import UserError

SAMPLE = 200_000  # utterances that buckets are chosen by; of more, so many are drawn
CANDIDATES = 250  # durations, spread over these, at which a bucket may end
TEXT_CANDIDATES = 60  # lengths of text, in each bucket of durations
PADDING_WEIGHT = 0.5  # of a batch full of audio and padding against one more batch, in choosing buckets
ROUNDING = 1 + 1e-6  # durations are float32: six of 5 s make 30 s, whatever the last bit
MOST_TEXT = 2**20  # tokens: more than any text has


class Positions(NamedTuple):
    """Positions of N utterances in the LLM's input, `[instruction][audio][BOS][text]`, where all but BOS is padded."""

    audio: np.ndarray  # (N,) audio embeddings, with what stands before them; grows with the duration
    text: np.ndarray  # (N,) tokens
    most: int  # that a batch may have, padding included


class Buckets:
    """Buckets of utterances of similar lengths; all batches of a bucket have equally many utterances.

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
        """Number of batches of an epoch with every utterance once, over all ranks."""
        return self._batches(self.counts)

    def batches_of(self, utterances: np.ndarray) -> int:
        """Number of batches of an epoch with these utterances."""
        return self._batches(np.bincount(self.of[utterances], minlength=len(self.counts)))

    def _batches(self, counts: np.ndarray) -> int:
        return int(-(-counts // self.batch_sizes).sum())

    def _most(self, lengths: np.ndarray) -> np.ndarray:
        """Largest length of each bucket, `(K,)`."""
        most = np.zeros(len(self.counts), lengths.dtype)
        np.maximum.at(most, self.of, lengths)
        return most

    def largest_batches(self) -> list[np.ndarray]:
        """Batch of each bucket with the most padding, for which memory must suffice.

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
    """Lengths of N utterances; audio and text are 0 if positions are not bounded."""

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
        """Share of a batch that an utterance takes when padded to these lengths."""
        return np.maximum(durations.astype(np.float64) / self.max_duration, self.padded(durations, audio, text))

    def padded(self, durations: np.ndarray, audio: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Padded length to be minimised: in positions, if they are bounded."""
        if np.isinf(self.max_positions):
            return durations.astype(np.float64) / self.max_duration
        return (audio.astype(np.float64) + 1 + text) / self.max_positions


def _batch_sizes(loads: np.ndarray) -> np.ndarray:
    """Number of utterances that fit if each takes this share of a batch."""
    return np.maximum(1, ROUNDING / loads).astype(np.int64)


# choosing buckets


def _assigned(lengths: _Lengths, num_buckets: int) -> np.ndarray:
    """Bucket of each utterance, `(N,)` uint16."""
    sample = lengths
    if len(lengths.durations) > SAMPLE:
        sample = lengths.chosen(np.random.default_rng(0).integers(len(lengths.durations), size=SAMPLE))
    durations, texts = _bounds(sample.chosen(np.argsort(sample.durations, kind="stable")), num_buckets)
    row = np.searchsorted(durations[:-1], lengths.durations)
    if len(texts) == len(durations):
        return row.astype(np.uint16)
    return np.searchsorted(texts[:-1], row * MOST_TEXT + lengths.text).astype(np.uint16)


def _bounds(ordered: _Lengths, num_buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the buckets of utterances that are ordered by duration.

    Rows come first, from few to as many as there may be buckets; each is divided by length of text as far as that
    saves most. The division of the least cost is taken.

    Returns:
        `(R,)` longest durations of the rows of buckets, and `(K,)` longest texts of the buckets in them, as
        row * MOST_TEXT + tokens.
    """
    if np.isinf(ordered.max_positions):
        (_, ends) = min(_divisions(ordered.durations, *_typical(ordered), num_buckets, CANDIDATES))
        return ordered.durations[ends - 1], np.arange(len(ends)) * MOST_TEXT
    ways = _divisions(ordered.durations, *_typical(ordered), num_buckets, CANDIDATES)
    found = [(*_divided_by_text(ordered, ends, num_buckets), ordered.durations[ends - 1]) for _, ends in ways]
    _, texts, durations = min(found, key=lambda each: each[0])
    return durations, texts


def _typical(ordered: _Lengths) -> tuple[np.ndarray, np.ndarray]:
    """Loads and padded lengths of utterances, with texts as long as usual for their durations."""
    usual = ordered.durations * (ordered.text.sum(dtype=np.float64) / ordered.durations.sum(dtype=np.float64))
    lengths = ordered.durations, ordered.audio, usual
    return ordered.loads(*lengths), ordered.padded(*lengths)


def _divided_by_text(ordered: _Lengths, ends: np.ndarray, num_buckets: int) -> tuple[float, np.ndarray]:
    """Divide rows of buckets that end at `ends`; return the cost, and the `(K,)` bounds as `_bounds` does."""
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
    """Best divisions of a list of utterances, ordered by length, into 1, 2 … `most` buckets.

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
    """Candidates of the best division, from the last back to the first."""
    at, chosen = len(came_from[-1]), []
    for previous in reversed(came_from):
        chosen.append(at - 1)
        at = previous[at - 1]
    return chosen[::-1]
