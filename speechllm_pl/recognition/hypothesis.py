"""What was recognised."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite


@dataclass(frozen=True)
class Hypothesis:
    """What was recognised in one utterance. Two are equal if their texts are, and ended alike."""

    text: str

    truncated: bool = False
    """Generation was ended before the text did: at its cap, or in a loop."""

    looped: bool = False
    """It was ended in a loop."""

    log_probability: float = field(default=0.0, compare=False)
    """Sum over all tokens that were chosen (of CTC: the classes of all frames), in nats."""

    num_tokens: int = field(default=0, compare=False)
    """Tokens of the text, and the end token where an LLM has written it."""

    passes: int = field(default=0, compare=False)
    """Forward passes of the LLM."""

    drafted: int = field(default=0, compare=False)
    """Tokens that were accepted of a draft."""

    @property
    def finite(self) -> bool:
        """Whether the logits that it was chosen from were: else nobody said it, whatever its text is."""
        return isfinite(self.log_probability)


def not_finite(ids: Iterable[str], hypotheses: Iterable[Hypothesis], system: str) -> str:
    """The line about texts that mean nothing, as their logits are not finite; empty when there is none."""
    broken = [id_ for id_, hypothesis in zip(ids, hypotheses, strict=True) if not hypothesis.finite]
    if not broken:
        return ""
    return (
        f"the {system} logits of {len(broken)} recordings are not finite, so no text was recognised:"
        f" {', '.join(broken[:5])}; try --precision 32-true, or another checkpoint of the run"
    )
