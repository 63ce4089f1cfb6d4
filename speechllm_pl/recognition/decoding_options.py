"""Options of the search for text, apart from the model."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from speechllm_pl.core.errors import UserError

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
"""Precisions of the computation, by the names of Lightning's trainer."""

Decoder = Literal["greedy", "speculative", "beam", "ctc", "ctc-beam"]
"""Searches for a text. `speculative` finds the LLM's text of `greedy` in fewer passes, by CTC's drafts; `beam` follows
several texts at a time. `ctc` and `ctc-beam` take the CTC head's text without asking an LLM, the latter by prefix beam
search, with an n-gram model if there is one."""

PausesBy = Literal["ctc", "silero"]
"""What finds the pauses at which recordings are divided: the CTC head's blanks, or Silero's voice activity detector."""


@dataclass(frozen=True)
class DecodingOptions:
    """Choices of a user of a recogniser."""

    decoder: Decoder = "greedy"
    """Search for an LLM's text. greedy asks the LLM once a token; speculative has it check what the CTC head heard, and
    finds the same text in fewer passes."""

    accept_probability: float | None = None
    """Probability, 0 to 1, from which speculative accepts a drafted token although the LLM would have written something
    else: fewer passes, another text. By default a token must be the LLM's own choice."""

    accept_entropy: float | None = None
    """Entropy in nats that no frame of an utterance may exceed for CTC's text to be taken without asking the LLM; by
    default the LLM is always asked."""

    max_new_tokens: int | None = None
    """Largest number of tokens of an LLM's text, if the length of its audio allows more."""

    num_beams: int = 4
    """Number of texts that `beam` and `ctc-beam` follow."""

    ctc_weight: float = 0.0
    """Share of the CTC head's score in the choice among the texts of `beam`, or between that of `speculative` and its
    draft; CTC's own text is always among them. A good value is 0.3."""

    ctc_candidates: int = 0
    """Number of texts of CTC's prefix beam search that are ranked with those of `beam`, by both scores: they spell
    words that the LLM would not have proposed. Then as many texts that combine the best ones. The LLM reads each; 16
    are a good number."""

    ngram: str | None = None
    """File of an n-gram model of CTC pieces for `ctc-beam`, as `python -m data_prep.ngram` makes it (ARPA, KenLM)."""

    ngram_weight: float = 0.5
    """Factor of the log-probability of `ngram` beside that of CTC."""

    @property
    def asks_llm(self) -> bool:
        """Whether an LLM writes the text, if there is one."""
        return not self.decoder.startswith("ctc")

    @property
    def relaxed(self) -> bool:
        """Whether texts may be accepted from the CTC head that are not the LLM's own."""
        return self.accept_probability is not None or self.accept_entropy is not None

    def exact(self) -> "DecodingOptions":
        """The same search, not relaxed."""
        return replace(self, accept_probability=None, accept_entropy=None)

    def __post_init__(self) -> None:
        if self.decoder not in get_args(Decoder):
            raise UserError(f"decoder {self.decoder!r} is unknown: give one of {', '.join(get_args(Decoder))}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens {self.max_new_tokens}: give at least 1")
        if self.accept_probability is not None and not 0 <= self.accept_probability <= 1:
            raise UserError(f"accept_probability {self.accept_probability:g} is a probability: give 0 to 1")
        if self.accept_probability is not None and self.decoder != "speculative":
            raise UserError(
                f"accept_probability is of speculative decoding, and has no effect on {self.decoder}:"
                " give --decoder speculative"
            )
        if self.accept_entropy is not None and not self.asks_llm:
            raise UserError(
                f"accept_entropy saves asking the LLM, which {self.decoder} never asks: give --decoder greedy"
            )
        if self.max_new_tokens is not None and not self.asks_llm:
            raise UserError(f"max_new_tokens is of an LLM's text, and {self.decoder} asks none: give --decoder greedy")
        if self.accept_entropy is not None and self.accept_entropy < 0:
            raise UserError(f"accept_entropy {self.accept_entropy:g} is below any entropy: give 0 or more")
        if self.num_beams < 1:
            raise UserError(f"num_beams {self.num_beams} follows no text: give 1 or more")
        if self.num_beams != type(self).num_beams and self.decoder not in ("beam", "ctc-beam"):
            raise UserError(
                f"num_beams is of beam and ctc-beam, and has no effect on {self.decoder}: give --decoder beam"
            )
        if not 0 <= self.ctc_weight <= 1:
            raise UserError(f"ctc_weight {self.ctc_weight:g} is a share: give 0 to 1")
        if self.ctc_weight and self.decoder not in ("beam", "speculative"):
            raise UserError(
                f"ctc_weight chooses among texts of beam or speculative: {self.decoder} finds only one: give"
                " --decoder beam"
            )
        if self.ctc_candidates < 0:
            raise UserError(f"ctc_candidates {self.ctc_candidates} is no number of texts: give 0 or more")
        if self.ctc_candidates and not (self.decoder == "beam" and self.ctc_weight):
            raise UserError(
                "ctc_candidates join the texts of beam, and are ranked by both scores: give --decoder beam"
                " --ctc_weight 0.3"
            )
        if self.ngram is not None and self.decoder != "ctc-beam":
            raise UserError(
                f"ngram is of decoder ctc-beam, and has no effect on {self.decoder}: give --decoder ctc-beam"
            )
        if not self.ngram_weight >= 0:
            raise UserError(f"ngram_weight {self.ngram_weight:g} would prefer unlikely texts: give 0 or more")
        if self.ngram_weight != type(self).ngram_weight and self.ngram is None:
            raise UserError("ngram_weight has no effect without an n-gram model: give --ngram too")


def check_lengths(longest_seconds: float | None, batch_seconds: float) -> None:
    """Check the longest piece of a recording, if it was given, and the audio in a batch.

    Raises:
        UserError: one of them has room for nothing.
    """
    if longest_seconds is not None and not longest_seconds >= 1:
        raise UserError(f"max_seconds {longest_seconds:g} leaves no room for a word: give at least 1")
    if not batch_seconds > 0:
        raise UserError(f"batches of {batch_seconds:g} seconds hold no audio: give more than 0")
