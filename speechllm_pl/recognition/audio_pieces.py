"""Divide a recording of any length into pieces as long as what a model was trained on.

A piece ends in a pause: by default at the CTC head's blanks, where it is quiet. A long pause becomes a silent piece of
its own, so that the LLM is never given long silences. Where there is no pause, neighbours overlap and are joined by
word times. Audio is forgotten when its piece has been handed on: memory does not grow with the recording.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from speechllm_pl.core.audio.units import samples_in, seconds_of
from speechllm_pl.core.ctc_tokenizer import BLANK
from speechllm_pl.recognition.speech_check import background_db

PAUSE_SECONDS = 0.24
"""Shortest pause, three frames of 80 ms; stops inside a word are shorter."""

LONG_PAUSE_SHARE = 0.05
"""Length of a pause that ends a piece of any length, as a share of the longest piece: training on longer utterances has
heard longer pauses inside them."""

LONG_PAUSE_SECONDS = 0.4, 1.0
"""Bounds of that length."""

MARGIN_SECONDS = 0.12
"""How much of a long pause stays with the speech on either side."""

LEAST_SHARE = 0.5
"""Share of the longest piece after which a piece may end in a short pause."""

KEPT_SECONDS = 1.0
"""End of a silence that is heard again with what follows: the CTC head may hear a word's beginning late."""

QUIET = 0.1
"""Power of a pause, as a share of the mean."""

OVERLAP_SECONDS = 2.0
"""Length that two pieces share where there is no pause."""

Stretch = tuple[int, int]
"""First sample of a pause and the one after its last."""


@dataclass(frozen=True)
class AudioPiece:
    """A stretch of a recording.

    Attributes:
        samples: `(N,)` at 16 kHz.
        start: number of its first sample in the recording.
        overlap_seconds: length at its beginning that the piece before it holds as well.
        silent: it is in a pause.
        background: level of the quiet in what it was cut from, in dB.
    """

    samples: np.ndarray
    start: int
    background: float
    overlap_seconds: float = 0.0
    silent: bool = False

    @property
    def start_seconds(self) -> float:
        return seconds_of(self.start)

    @property
    def end_seconds(self) -> float:
        return seconds_of(self.start + len(self.samples))


def long_pause(longest_seconds: float) -> float:
    """Length in seconds from which a pause ends a piece of any length."""
    least, most = LONG_PAUSE_SECONDS
    return min(max(LONG_PAUSE_SHARE * longest_seconds, least), most)


def pieces(
    chunks: Iterable[np.ndarray],
    pauses_of: Callable[[np.ndarray], Sequence[Stretch]],
    longest_seconds: float,
) -> Iterator[AudioPiece]:
    """Divide a recording.

    Args:
        chunks: its samples at 16 kHz in order, `(n,)` each, of any lengths.
        pauses_of: function that finds the pauses in `(N,)` samples.
        longest_seconds: longest piece.

    Yields:
        Pieces that cover the recording in order. A recording that is no longer than the longest piece and without long
        pauses is one, and one without samples has one without samples.
    """
    longest = samples_in(longest_seconds)
    rest = Rest(longest_seconds)
    for chunk in chunks:
        rest.add(chunk)
        while len(rest.samples) > longest:
            yield from rest.cut_within(pauses_of(rest.samples[:longest]), longest)
    yield from rest.cut_all(pauses_of(rest.samples) if len(rest.samples) else [])


class Rest:
    """What is left of a recording that is being divided.

    Args:
        longest_seconds: longest piece.

    Attributes:
        samples: `(N,)` that are not yet divided.
        start: number of the first of them in the recording.
        shared: number of samples at their beginning that the piece before holds as well.
        long: number of samples from which a pause ends a piece of any length.
        kept: number of samples that are kept of a silence that goes on.
    """

    def __init__(self, longest_seconds: float):
        self.samples, self.start = np.zeros(0, np.float32), 0
        self.shared = 0
        self.long, self._longest = samples_in(long_pause(longest_seconds)), samples_in(longest_seconds)
        most = self._longest // 4
        self.kept, self._overlap = min(samples_in(KEPT_SECONDS), most), min(samples_in(OVERLAP_SECONDS), most)

    def add(self, samples: np.ndarray) -> None:
        self.samples = np.concatenate([self.samples, samples])

    def cut_within(self, pauses: Sequence[Stretch], length: int) -> list[AudioPiece]:
        """Take pieces off the first `length` samples: up to long pauses, else a short one, else all but an overlap.

        Of silence all but what is kept is a piece.

        Args:
            pauses: of these samples.
        """
        if pauses == [(0, length)]:
            return self.cut([length - self.kept], pauses)
        ends = self.ends_in_long_pauses(pauses, length) or _end_in_a_pause(pauses, length)
        return self.cut(ends or [length], pauses, overlap=0 if ends else self._overlap)

    def cut_all(self, pauses: Sequence[Stretch]) -> list[AudioPiece]:
        """Take off all that is left; `pauses` are its pauses."""
        length = len(self.samples)
        return self.cut([*self.ends_in_long_pauses(pauses, length), length], pauses)

    def cut(self, ends: Sequence[int], pauses: Sequence[Stretch], overlap: int = 0) -> list[AudioPiece]:
        """Take off copies of the pieces that end at `ends`, and keep the last `overlap` samples of them."""
        first, found, background = 0, [], background_db(self.samples[: self._longest])
        for end in ends:
            silent = any(pause[0] <= first and end <= pause[1] for pause in pauses)
            shared = seconds_of(self.shared) if first == 0 else 0.0
            found.append(AudioPiece(self.samples[first:end].copy(), self.start + first, background, shared, silent))
            first = end
        self.samples, self.start = self.samples[first - overlap :], self.start + first - overlap
        self.shared = overlap
        return found

    def ends_in_long_pauses(self, pauses: Sequence[Stretch], length: int) -> list[int]:
        """Ends of pieces in the long pauses of the first `length` samples.

        Pauses that are longer than their margins are pieces of their own. One with which all that is left begins is the
        rest of a long one.
        """
        margin, ends = samples_in(MARGIN_SECONDS), []
        for first, end in pauses:
            if end - first < self.long and (first or not self.start):
                continue
            if first == 0 or end == length:
                ends.append(end - margin if first == 0 else first + margin)
            elif end - first < 4 * margin:
                ends.append((first + end) // 2)
            else:
                ends += [first + margin, end - margin]
        return [] if pauses == [(0, length)] else ends


def pauses_in(log_probs: Tensor, samples: np.ndarray, per_frame: int) -> list[Stretch]:
    """Find the stretches in which the CTC head's best class is the blank, and if there are such ones, that are quiet.

    Blanks also stand between the pieces of a word, which is not quiet.
    """
    blank = (log_probs.argmax(-1) == BLANK).numpy()
    power = np.array([np.square(samples[n * per_frame : (n + 1) * per_frame]).mean() for n in range(len(blank))])
    quiet = power <= QUIET * power.mean()
    if blank.all():
        return [(0, len(samples))]
    for flags in (blank & quiet, blank):
        edges = np.flatnonzero(np.diff(np.r_[False, flags, False]))
        found = [
            (int(first) * per_frame, len(samples) if end == len(flags) else int(end) * per_frame)
            for first, end in edges.reshape(-1, 2)
            if (end - first) * per_frame >= samples_in(PAUSE_SECONDS)
        ]
        if found:
            return found
    return []


def _end_in_a_pause(pauses: Sequence[Stretch], length: int) -> list[int]:
    """The middle of the longest pause after `LEAST_SHARE` of `length`; none if there is no pause."""
    late = [pause for pause in pauses if sum(pause) >= 2 * LEAST_SHARE * length]
    first, end = max(late, key=lambda pause: pause[1] - pause[0], default=(0, 0))
    return [(first + end) // 2] if end else []
