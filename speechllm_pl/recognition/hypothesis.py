"""Recognised texts."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the texts that a search found. Two are equal if their texts are.

    Attributes:
        text: the text.
        log_probability: score by which the search ranked it, in nats: the LLM's, or with `ctc-beam` the CTC head's.
        ctc_log_probability: log-likelihood by the CTC head, in nats, with a `ctc_weight`; otherwise 0.
    """

    text: str
    log_probability: float = field(compare=False)
    ctc_log_probability: float = field(compare=False)


@dataclass(frozen=True)
class Hypothesis:
    """Recognised text of one utterance. Two are equal if their texts are equal and ended alike."""

    text: str

    truncated: bool = False
    """Generation stopped before the end of the text: at the cap, or in a loop."""

    looped: bool = False
    """Generation stopped in a loop."""

    log_probability: float = field(default=0.0, compare=False)
    """Sum over all chosen tokens (for CTC, the classes of all frames), in nats."""

    num_tokens: int = field(default=0, compare=False)
    """Number of tokens of the text, including the end token if an LLM has written it."""

    passes: int = field(default=0, compare=False)
    """Number of forward passes of the LLM."""

    drafted: int = field(default=0, compare=False)
    """Number of tokens accepted from a draft."""

    by_ctc: bool = field(default=False, compare=False)
    """Whether the CTC head found the text, and the LLM only scored it."""

    ctc_log_probability: float = field(default=0.0, compare=False)
    """Log-likelihood of an LLM's text by the CTC head, in nats, if it was asked."""

    alternatives: tuple["Hypothesis", ...] = field(default=(), compare=False)
    """Texts that were found, this one among them, the best one first; none of searches that find only one."""

    def joint_log_probability(self, ctc_weight: float) -> float:
        """Score of the LLM and the CTC head together, in nats; they count 1 - `ctc_weight` and `ctc_weight`."""
        return (1 - ctc_weight) * self.log_probability + ctc_weight * self.ctc_log_probability

    @property
    def n_best(self) -> tuple[Alternative, ...]:
        """The alternatives with their scores, the best one first."""
        return tuple(
            Alternative(each.text, each.log_probability, each.ctc_log_probability) for each in self.alternatives
        )

    @property
    def finite(self) -> bool:
        """Whether the logits were finite; otherwise the text is meaningless."""
        return isfinite(self.log_probability)


def not_finite(ids: Iterable[str], hypotheses: Iterable[Hypothesis], system: str) -> str:
    """Message about texts that are meaningless, as their logits are not finite; empty if there are none."""
    broken = [id_ for id_, hypothesis in zip(ids, hypotheses, strict=True) if not hypothesis.finite]
    if not broken:
        return ""
    return (
        f"the {system} logits of {len(broken)} recordings are not finite, so no text was recognised:"
        f" {', '.join(broken[:5])}; try --precision 32-true, or another checkpoint of the run"
    )
