"""Second floor: models and score functions in, text out."""

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
