"""Align a text, which may be the LLM's, with its audio: when each word was said.

The text is spelled in the CTC tokenizer's pieces and aligned with the CTC head's frames by Viterbi search (torchaudio's
`forced_align`; Kürzinger et al., arXiv 2007.09127, describe its use with CTC). A CTC head marks a piece by a frame
somewhere inside it, so words then reach to where it is quiet between their frames. No time is invented: a word that the
tokenizer cannot spell, or that does not fit into the frames, has the times of the gap between its neighbours and says
so.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import ceil, exp
from statistics import fmean

import numpy as np
import torch
import torchaudio.functional as AF
from torch import Tensor

from speechllm_pl.core.audio.units import samples_in
from speechllm_pl.core.ctc_tokenizer import BLANK, CtcTokenizer

STEP_SECONDS = 0.01
"""Time between two values of the loudness."""

QUIET_DB = 25.0
"""A pause between words is quieter by so much than the loudest twentieth of the audio."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a transcript.

    Attributes:
        text: the word as the transcript has it.
        start_seconds, end_seconds: times in the audio, which never decrease from word to word.
        confidence: geometric mean of the CTC probabilities of the word's pieces, 0 to 1; 0 where `aligned` is false.
        aligned: whether the times are the word's own. Otherwise they are those of the gap in which it must lie.
    """

    text: str
    start_seconds: float
    end_seconds: float
    confidence: float
    aligned: bool

    @property
    def middle_seconds(self) -> float:
        return (self.start_seconds + self.end_seconds) / 2

    def later(self, seconds: float) -> "Word":
        """The same word with its times moved."""
        return replace(self, start_seconds=self.start_seconds + seconds, end_seconds=self.end_seconds + seconds)

    def not_before(self, seconds: float) -> "Word":
        """The same word with what lies before a time cut off."""
        start, end = max(seconds, self.start_seconds), max(seconds, self.end_seconds)
        return replace(self, start_seconds=start, end_seconds=end)


def loudness_of(samples: np.ndarray) -> np.ndarray:
    """Loudness of `(N,)` samples in dB, every `STEP_SECONDS`, over three of these steps."""
    step = samples_in(STEP_SECONDS)
    power = np.square(samples[: len(samples) // step * step]).reshape(-1, step).mean(1)
    if not len(power):
        return power
    return 10 * np.log10(np.convolve(np.pad(power, 1, "edge"), np.full(3, 1 / 3), "valid") + 1e-9)


@dataclass(frozen=True)
class AlignedText:
    """A text with its audio, aligned once, when that is first asked.

    Attributes:
        log_probs: `(T, V)` of the CTC head, for the audio's real frames.
        text: words with single spaces between them.
        tokenizer: tokenizer of the CTC classes.
    """

    log_probs: Tensor
    text: str
    tokenizer: CtcTokenizer

    @cached_property
    def _spans(self) -> list["_Span | None"]:
        return _spans(self.log_probs, [_spellable(word, self.tokenizer) for word in self.text.split()])

    @property
    def confidence(self) -> float:
        """Mean confidence of the words; 1 without words that can be aligned."""
        return fmean([exp(span.score) for span in self._spans if span] or [1.0])

    def words(self, seconds_per_frame: float, seconds: float, loudness: np.ndarray | None = None) -> list[Word]:
        """Return a `Word` for each word of the text, in order.

        Args:
            seconds_per_frame: from one frame to the next.
            seconds: length of the audio, which no word exceeds.
            loudness: of the audio, as `loudness_of` returns it; without it words have the times of their frames.
        """
        edges = [span and span.edges(seconds_per_frame, seconds) for span in self._spans]
        if loudness is not None and len(loudness):
            edges = _widened(edges, seconds, loudness)
        return [
            Word(word, *edge, exp(span.score), aligned=True)
            if span and edge
            else Word(word, *_gap(edges, place, seconds), 0.0, aligned=False)
            for place, (word, span, edge) in enumerate(zip(self.text.split(), self._spans, edges, strict=True))
        ]


@dataclass(frozen=True)
class _Span:
    """Frames `start` to `end` (exclusive) of a word, and the mean log-probability of its pieces."""

    start: int
    end: int
    score: float

    def edges(self, seconds_per_frame: float, seconds: float) -> tuple[float, float]:
        """Start and end in seconds, inside the audio; the last frame may reach beyond it."""
        return min(self.start * seconds_per_frame, seconds), min(self.end * seconds_per_frame, seconds)


def _spellable(word: str, tokenizer: CtcTokenizer) -> list[int]:
    """Classes of a word without the characters that the tokenizer lacks; none for a lone word mark."""
    whole = tokenizer.encode(word)
    if tokenizer.unk not in whole:
        return whole
    known = "".join(character for character in word if tokenizer.unk not in tokenizer.encode(character))
    return tokenizer.encode(known) if known else []


def _spans(log_probs: Tensor, words: list[list[int]]) -> list[_Span | None]:
    """Align the pieces of each word; None for words without pieces, and for all if they need more frames."""
    pieces = [piece for word in words for piece in word]
    needed = len(pieces) + sum(first == second for first, second in pairwise(pieces))
    if not pieces or needed > len(log_probs):
        return [None] * len(words)
    targets = torch.tensor([pieces], dtype=torch.int32, device=log_probs.device)
    path, scores = AF.forced_align(log_probs.float()[None], targets, blank=BLANK)
    found = iter(AF.merge_tokens(path[0], scores[0], blank=BLANK))
    spans = []
    for word in words:
        own = [next(found) for _ in word]
        score = sum(float(span.score) for span in own) / max(1, len(own))
        spans.append(_Span(own[0].start, own[-1].end, score) if own else None)
    return spans


def _widened(
    edges: list[tuple[float, float] | None], seconds: float, loudness: np.ndarray
) -> list[tuple[float, float] | None]:
    """Move the end of each word and the start of the next apart, to the ends of the pause between them.

    What lies beside a word without times stays.
    """
    limit = float(np.quantile(loudness, 0.95)) - QUIET_DB
    around = [(0.0, 0.0), *edges, (seconds, seconds)]
    pauses = [
        _pause(loudness, before[1], after[0], limit) if before and after else None for before, after in pairwise(around)
    ]
    return [
        edge and (before[1] if before else edge[0], after[0] if after else edge[1])
        for edge, (before, after) in zip(edges, pairwise(pauses), strict=True)
    ]


def _pause(loudness: np.ndarray, start: float, end: float, limit: float) -> tuple[float, float]:
    """The longest stretch below the limit from `start` to `end`, in seconds; without one the quietest moment, twice."""
    first = ceil(start / STEP_SECONDS)
    between = loudness[first : int(end / STEP_SECONDS)]
    if not len(between):
        return start, end
    quiet = np.flatnonzero(np.diff(np.r_[False, between < limit, False])).reshape(-1, 2)
    pause = quiet[(quiet[:, 1] - quiet[:, 0]).argmax()] if len(quiet) else np.repeat(between.argmin(), 2)
    begin, over = ((first + pause) * STEP_SECONDS).tolist()
    return begin, over


def _gap(edges: list[tuple[float, float] | None], place: int, seconds: float) -> tuple[float, float]:
    """Times between the aligned words on either side of `place`."""
    before = [edge[1] for edge in edges[:place] if edge]
    after = [edge[0] for edge in edges[place + 1 :] if edge]
    start = before[-1] if before else 0.0
    return start, max(start, after[0] if after else seconds)
