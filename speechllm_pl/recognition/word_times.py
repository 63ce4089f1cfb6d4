"""Align a text, which may be the LLM's, with the CTC head's frames: when each word was said.

The text is spelled in the CTC tokenizer's pieces and aligned by Viterbi search (torchaudio's `forced_align`; Kürzinger
et al., arXiv 2007.09127, describe its use with CTC). No time is invented: a word that the tokenizer cannot spell, or
that does not fit into the frames, has the times of the gap between its neighbours and says so.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import exp

import torch
import torchaudio.functional as AF
from torch import Tensor

from speechllm_pl.core.ctc_tokenizer import BLANK, CtcTokenizer


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


def word_times(
    log_probs: Tensor, text: str, tokenizer: CtcTokenizer, seconds_per_frame: float, seconds: float
) -> list[Word]:
    """Align a text with the frames of its audio.

    Args:
        log_probs: `(T, V)` of the CTC head, for the audio's real frames.
        text: words with single spaces between them.
        tokenizer: tokenizer of the CTC classes.
        seconds_per_frame: from one frame to the next.
        seconds: length of the audio, which no word exceeds.

    Returns:
        A `Word` for each word of the text, in order.
    """
    words = text.split()
    spelled = [_spellable(word, tokenizer) for word in words]
    spans = _spans(log_probs, spelled)
    edges = [span and span.edges(seconds_per_frame, seconds) for span in spans]
    return [
        Word(word, *edge, exp(span.score), aligned=True)
        if span and edge
        else Word(word, *_gap(edges, place, seconds), 0.0, aligned=False)
        for place, (word, span, edge) in enumerate(zip(words, spans, edges, strict=True))
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


def _gap(edges: list[tuple[float, float] | None], place: int, seconds: float) -> tuple[float, float]:
    """Times between the aligned words on either side of `place`."""
    before = [edge[1] for edge in edges[:place] if edge]
    after = [edge[0] for edge in edges[place + 1 :] if edge]
    start = before[-1] if before else 0.0
    return start, max(start, after[0] if after else seconds)
