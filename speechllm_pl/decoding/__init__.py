"""Second floor: models and score functions in, text out."""

from typing import NamedTuple


class Hypothesis(NamedTuple):
    """What was recognised in one utterance."""

    text: str
    truncated: bool = False  # generation was ended before the text did: at its cap, or in a loop
    looped: bool = False  # in a loop
