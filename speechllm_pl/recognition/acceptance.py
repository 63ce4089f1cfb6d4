"""How much of an LLM's texts came from the CTC head, which relaxed modes accept without the LLM's own choice."""

from collections.abc import Iterable
from dataclasses import dataclass

from speechllm_pl.recognition.hypothesis import Hypothesis


@dataclass(frozen=True)
class Acceptance:
    """Counts over utterances whose texts an LLM was to write.

    Attributes:
        utterances: all of them.
        unasked: those whose CTC text was taken without asking the LLM.
        tokens: tokens of the others' texts.
        drafted: those of these tokens that were accepted from drafts.
        passes: forward passes of the LLM, of every utterance its own.
    """

    utterances: int = 0
    unasked: int = 0
    tokens: int = 0
    drafted: int = 0
    passes: int = 0

    @classmethod
    def of(cls, written: Iterable[Hypothesis]) -> "Acceptance":
        """Count the results of `Recognizer.write`."""
        counts = [(1, not each.passes, each.num_tokens, each.drafted, each.passes) for each in written]
        return cls(*map(sum, zip(*counts, strict=True)))

    def __add__(self, other: "Acceptance") -> "Acceptance":
        return Acceptance(
            self.utterances + other.utterances,
            self.unasked + other.unasked,
            self.tokens + other.tokens,
            self.drafted + other.drafted,
            self.passes + other.passes,
        )

    def rates(self) -> dict[str, float]:
        """Passes an utterance, share of tokens from drafts, and share of utterances of which the LLM was not asked."""
        utterances = max(1, self.utterances)
        return {
            "llm_passes": self.passes / utterances,
            "drafted": self.drafted / max(1, self.tokens),
            "unasked": self.unasked / utterances,
        }


def in_words(rates: dict[str, float]) -> str:
    """Rates of `Acceptance`, as `1.3 passes of the LLM an utterance, 95.2 % of its tokens from drafts`."""
    unasked = f", {100 * rates['unasked']:.1f} % of texts without asking it" if rates.get("unasked") else ""
    return (
        f"{rates['llm_passes']:.2f} passes of the LLM an utterance, {100 * rates['drafted']:.1f} % of its tokens from"
        f" drafts{unasked}"
    )
