"""How text is searched for, apart from the model."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
"""Of the computation, as Lightning's trainer names them."""


@dataclass(frozen=True)
class DecodingOptions:
    """What a user of a recogniser may choose."""

    decoder: Literal["greedy"] = "greedy"
    """How an LLM's text is searched for."""

    max_new_tokens: int | None = None
    """Most tokens of an LLM's text, where the length of its audio would allow more."""
