"""Second floor: models and score functions in, text out."""

from typing import NamedTuple


class Hypothesis(NamedTuple):
    """What was recognised in one utterance."""

    text: str
    truncated: bool = False  # generation met its cap before the end of the text
