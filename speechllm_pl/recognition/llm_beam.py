"""Beam search: the best texts among those that stay likely at every step, as `generate` of transformers finds them."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Protocol

import torch
from torch import Tensor

from speechllm_pl.recognition.scorer import Scorer
from speechllm_pl.recognition.text_end import TextEnd


class BeamScorer(Scorer, Protocol):
    """Scorer whose rows can be dropped, repeated and put in another order."""

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows."""
        ...


@dataclass(frozen=True)
class Beam:
    """Text of one utterance, finished or under way.

    Attributes:
        end: finds where the text ends.
        tokens: tokens of the text so far, including the end token.
        log_probability: sum over the tokens; not finite where the logits were not.
    """

    end: TextEnd
    tokens: tuple[int, ...] = ()
    log_probability: float = 0.0

    @property
    def score(self) -> float:
        """Mean log-probability of a token, by which texts of different lengths are compared."""
        return self.log_probability / max(1, len(self.tokens))

    def extended(self, token: int, log_probability: float) -> "Beam":
        """Return the text with one more token, and its new sum of log-probabilities."""
        end, tokens = copy(self.end), (*self.tokens, token)
        end(tokens)
        return Beam(end, tokens, log_probability)


@dataclass
class Search:
    """Search for the text of one utterance.

    Attributes:
        live: texts under way, the likeliest first.
        finished: finished texts, the best one first.
        passes: forward passes of the LLM.
    """

    live: list[Beam]
    finished: list[Beam] = field(default_factory=list)
    passes: int = 0

    @property
    def beams(self) -> list[Beam]:
        """The texts found, by falling mean log-probability of a token; one empty text where the cap is 0."""
        return self.finished or self.live

    def advance(self, log_probabilities: Tensor, choices: Tensor, num_beams: int) -> list[int]:
        """Replace the live beams by their best extensions.

        Args:
            log_probabilities, choices: `(live, K)` best next tokens of each live beam.

        Returns:
            For each new live beam, the old one that it extends.
        """
        self.passes += 1
        if not all(isfinite(best) for best in log_probabilities[:, 0].tolist()):
            self.live, self.finished = [], [Beam(self.live[0].end, self.live[0].tokens, nan)]
            return []
        sums = torch.tensor([beam.log_probability for beam in self.live], dtype=torch.float64)[:, None]
        totals = (sums + log_probabilities.double().cpu()).flatten()
        best = totals.topk(min(2 * num_beams, len(totals)))  # at least half of these do not end by the end token
        places = zip(best.values.tolist(), best.indices.tolist(), choices.flatten()[best.indices].tolist(), strict=True)
        old, self.live, parents = self.live, [], []
        for rank, (total, place, token) in enumerate(places):
            parent = place // choices.shape[1]
            beam = old[parent].extended(token, total)
            if not beam.end.ended and len(self.live) < num_beams and isfinite(total):
                self.live.append(beam)
                parents.append(parent)
            elif beam.end.ended and rank < num_beams and isfinite(total):
                self.finished.append(beam)
        self.finished = sorted(self.finished, key=lambda beam: -beam.score)[:num_beams]
        if len(self.finished) == num_beams and self.live and self.live[0].score <= self.finished[-1].score:
            self.live, parents = [], []
        return parents


@torch.no_grad()
def beam_search(scorer: BeamScorer, caps: Sequence[int], eos_id: int, num_beams: int) -> list[Search]:
    """Find up to `num_beams` texts for each row of a batch.

    Args:
        caps: largest number of tokens of each row.
        eos_id: the end token.
        num_beams: texts that are kept at every step.
    """
    searches = [Search([Beam(TextEnd(cap, eos_id))]) for cap in caps]
    under_way = [search for search, cap in zip(searches, caps, strict=True) if cap > 0]
    scorer.select([row for row, cap in enumerate(caps) if cap > 0])
    tokens = None
    while under_way:
        logits = scorer(tokens)  # (R, V), a row for each live beam
        log_probabilities, choices = logits.log_softmax(-1).topk(min(2 * num_beams, logits.shape[1]))
        parents, first = [], 0
        for search in under_way:
            rows = slice(first, first + len(search.live))
            first = rows.stop
            extended = search.advance(log_probabilities[rows], choices[rows], num_beams)
            parents += [rows.start + parent for parent in extended]
        under_way = [search for search in under_way if search.live]
        scorer.select(parents)
        newest = [beam.tokens[-1] for search in under_way for beam in search.live]
        tokens = torch.tensor(newest, device=logits.device)
    return searches
