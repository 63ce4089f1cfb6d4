"""What was recognised."""

from collections.abc import Iterable
from typing import NamedTuple


class Hypothesis(NamedTuple):
    """What was recognised in one utterance."""

    text: str
    truncated: bool = False  # generation was ended before the text did: at its cap, or in a loop
    looped: bool = False  # in a loop
    finite = True  # the logits that it was chosen from


class Meaningless(Hypothesis):
    """Of logits that were NaN or infinite: whatever its text is, nobody said it."""

    finite = False


def not_finite(ids: Iterable[str], hypotheses: Iterable[Hypothesis], system: str) -> str:
    """The line about texts that mean nothing, as their logits are not finite; empty when there is none."""
    broken = [id_ for id_, hypothesis in zip(ids, hypotheses, strict=True) if not hypothesis.finite]
    if not broken:
        return ""
    return (
        f"the {system} logits of {len(broken)} recordings are not finite, so no text was recognised:"
        f" {', '.join(broken[:5])}; try --precision 32-true, or another checkpoint of the run"
    )
