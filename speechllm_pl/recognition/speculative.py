"""Greedy search with drafts: the LLM checks a guess of the whole text in one forward pass, in batches.

The CTC head's text, in the LLM's tokens, is right nearly everywhere. What the LLM would have written itself is accepted
up to the first difference, where its own token counts; what is left of the draft is realigned and offered again
(`drafts.py`). The texts are those of greedy search (Leviathan et al., arXiv 2211.17192, with a greedy verifier; drafts
from a CTC head: arXiv 2603.11243).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp

from torch import Tensor

from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.recognition.draft_scorer import DraftScorer
from speechllm_pl.recognition.drafts import Draft
from speechllm_pl.recognition.text_end import TextEnd


@dataclass
class Row:
    """Utterance whose text is being written.

    Attributes:
        draft: the guess; its last token is the end token.
        end: finds where the text ends.
        tokens: tokens of the text so far, including the end token.
        log_probability: sum over the tokens; not finite where the logits were not.
        passes: forward passes of the LLM.
        accepted: tokens that came from the draft.
        draft_log_probability: of the whole draft as a text; None where it is longer than the cap.
    """

    draft: Draft
    end: TextEnd
    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    passes: int = 0
    accepted: int = 0
    draft_log_probability: float | None = None

    def offer(self) -> list[int]:
        """Return the draft's next tokens, as many as the cap leaves room for."""
        return self.draft.rest[: max(0, self.end.cap - len(self.tokens) - 1)]

    def write(self, token: int, log_probability: float) -> None:
        self.tokens.append(token)
        self.log_probability += log_probability
        self.draft.write(token)
        self.end(self.tokens)


def speculative(
    scorer: DraftScorer,
    drafts: Sequence[Sequence[int]],
    caps: Sequence[int],
    eos_id: int,
    accept_probability: float | None = None,
) -> list[Row]:
    """Write the text of each row of a batch.

    Args:
        drafts: a guess for each row, without an end token.
        caps: largest number of tokens of each row.
        eos_id: the end token.
        accept_probability: also accept a drafted token to which the LLM gives at least this probability, even if it
            prefers another. The text is then not that of greedy search.
    """
    rows = [Row(Draft([*draft, eos_id]), TextEnd(cap, eos_id)) for draft, cap in zip(drafts, caps, strict=True)]
    scorer.keep([place for place, row in enumerate(rows) if not row.end.ended])
    under_way = [row for row in rows if not row.end.ended]
    while under_way:
        offers = [row.offer() for row in under_way]
        last = [row.tokens[-1:] for row in under_way]
        # Without a name of their own the logits are gone before those of the next pass.
        scorer.accept(_verify(under_way, offers, scorer.score(last, offers), accept_probability))
        scorer.keep([place for place, row in enumerate(under_way) if not row.end.ended])
        under_way = [row for row in under_way if not row.end.ended]
    return rows


def _verify(rows: list[Row], offers: list[list[int]], logits: Tensor, accept_probability: float | None) -> list[int]:
    """Extend each row by the offered tokens that the LLM accepts, and by the token that it puts after them.

    Args:
        logits: `(B, K + 1, V)` logits after the row's last token, and after each of the K offered ones.

    Returns:
        Number of accepted tokens of each row.
    """
    totals = logits.logsumexp(-1)  # (B, K + 1)
    most, best = logits.max(-1)
    own = zip(best.tolist(), (most - totals).tolist(), strict=True)
    offered, _ = pad_tokens(offers, logits.device)  # (B, K)
    of_offered = logits[:, :-1].gather(2, offered[:, :, None])[:, :, 0] - totals[:, :-1]
    accepted = []
    for row, offer, (choices, chances), likelihoods in zip(rows, offers, own, of_offered.tolist(), strict=True):
        if row.passes == 0 and len(offer) == len(row.draft.tokens):
            row.draft_log_probability = sum(likelihoods[: len(offer)])
        row.passes += 1
        count = 0
        while count < len(offer) and not row.end.ended:
            equal = offer[count] == choices[count]
            if not equal and (accept_probability is None or exp(likelihoods[count]) < accept_probability):
                break
            row.write(offer[count], likelihoods[count])
            count += 1
        row.accepted += count
        if not row.end.ended:
            row.write(choices[count], chances[count])
        accepted.append(count)
    return accepted
