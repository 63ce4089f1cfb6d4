"""Where an LLM's text ends: at its end token, at a cap that its audio sets, at its last position, or in a loop."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

TOKENS_PER_SECOND = 25  # fast speech has about 8 syllables a second, and a token has at least a third of one
EXTRA_TOKENS = 10

# A loop is a phrase of at most so many tokens, said again and again to the end of what is written, at least so many
# times and over at least so many tokens: far beyond what people repeat ("no no no no", a telephone number's zeros).
LOOP_PHRASE = 8
LOOP_TIMES = 8
LOOP_TOKENS = 24

log = logging.getLogger(__name__)


def token_caps(seconds: Tensor) -> Tensor:
    """`(B,)` seconds of audio → `(B,)` most tokens that they can hold."""
    return (seconds * TOKENS_PER_SECOND).ceil().long() + EXTRA_TOKENS


def lowered(caps: Tensor, prompts: Tensor, limit: int) -> Tensor:
    """Caps that the LLM has positions for.

    Args:
        caps: `(B,)` most tokens of each row.
        prompts: `(B,)` positions that instruction, audio and BOS take. The last token that is said takes none.
        limit: positions that the LLM has.

    Returns:
        `(B,)`, 0 where the prompt by itself is too long: that text is empty, and counts as cut short.
    """
    too_long = int((prompts > limit).sum())
    if too_long:
        log.warning(
            "audio takes up to %d of the LLM's %d positions, so nothing is said of %d utterance(s): split them, or"
            " train with a longer stride",
            int(prompts.max()),
            limit,
            too_long,
        )
    return caps.minimum(limit + 1 - prompts).clamp(min=0)


class TextEnds:
    """Ends each row by itself, so that an utterance's hypothesis does not depend on its batch.

    A row that loops would hold its batch to the cap.

    Args:
        caps: `(B,)` most tokens of each row.
        eos_id: the end token.

    Attributes:
        lengths: `(B,)` tokens of each row, its end token included, as far as is known.
        complete: `(B,)` whether the row has its end token.
        looped: `(B,)` whether it was ended in a loop.
        ended: `(B,)` whether nothing more of it is read.
    """

    def __init__(self, caps: Tensor, eos_id: int):
        self.lengths = caps
        self.complete = torch.zeros_like(caps, dtype=torch.bool)
        self.looped = torch.zeros_like(caps, dtype=torch.bool)
        self.ended = caps <= 0
        self._eos_id = eos_id
        periods = torch.arange(1, LOOP_PHRASE + 1, device=caps.device)
        times = (-(-LOOP_TOKENS // periods)).clamp(min=LOOP_TIMES)
        self._needed = (times - 1) * periods  # (P,) tokens in a row that equal the one a period before
        self._equal = torch.zeros(
            len(caps), LOOP_PHRASE, dtype=torch.long, device=caps.device
        )  # (B, P) of these so far

    def __call__(self, written: Tensor) -> Tensor:
        """Look at the newest token of each row: to be called after every one.

        Args:
            written: `(B, n)` all tokens so far.

        Returns:
            `ended`.
        """
        length = written.shape[1]
        earlier = written[:, max(0, length - 1 - LOOP_PHRASE) : length - 1].flip(1)  # (B, ≤ P) the last one first
        known = self._equal[:, : earlier.shape[1]]
        known += 1
        known *= earlier == written[:, -1:]
        at_end = (written[:, -1] == self._eos_id) & ~self.ended
        looping = (self._equal >= self._needed).any(1) & (length < self.lengths) & ~self.ended
        self.complete |= at_end
        self.looped |= looping
        self.lengths = torch.where(at_end | looping, length, self.lengths)
        self.ended = self.lengths <= length
        return self.ended


class TextEnd:
    """`TextEnds` of one row whose tokens come a few at a time.

    Args:
        cap: most tokens.
        eos_id: the end token.

    Attributes:
        complete: whether the row has its end token.
        looped: whether it was ended in a loop.
        ended: whether nothing more is to be written.
    """

    def __init__(self, cap: int, eos_id: int):
        self.cap, self.complete, self.looped, self.ended = cap, False, False, cap <= 0
        self._eos_id = eos_id
        self._equal = [0] * LOOP_PHRASE  # by period: tokens in a row that equal the one a period before

    def __call__(self, tokens: Sequence[int]) -> None:
        """Look at the newest of the tokens: to be called after every one."""
        self.complete = tokens[-1] == self._eos_id
        for place, equal in enumerate(self._equal):
            same = place + 1 < len(tokens) and tokens[-1] == tokens[-2 - place]
            self._equal[place] = equal + 1 if same else 0
        needed = ((max(LOOP_TIMES, -(-LOOP_TOKENS // period)) - 1) * period for period in range(1, LOOP_PHRASE + 1))
        looping = any(equal >= enough for equal, enough in zip(self._equal, needed, strict=True))
        self.looped = looping and len(tokens) < self.cap
        self.ended = self.complete or self.looped or len(tokens) >= self.cap
