"""End of an LLM's text: at its end token, at a cap set by its audio, at the last position, or in a loop."""

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
    """Largest numbers of tokens, `(B,)`, that `(B,)` seconds of audio can hold."""
    return (seconds * TOKENS_PER_SECOND).ceil().long() + EXTRA_TOKENS


def lowered(caps: Tensor, prompts: Tensor, limit: int) -> Tensor:
    """Lower caps to the positions of the LLM.

    Args:
        caps: `(B,)` largest number of tokens of each row.
        prompts: `(B,)` positions of instruction, audio and BOS. The last token of the text takes none.
        limit: number of positions of the LLM.

    Returns:
        `(B,)` caps, 0 where the prompt alone is too long: that text is empty, and counts as cut short.
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
    """Ends each row separately, so that an utterance's hypothesis does not depend on its batch.

    Loops end early, as one would keep its batch running to the cap.

    Args:
        caps: `(B,)` largest number of tokens of each row.
        eos_id: the end token.

    Attributes:
        lengths: `(B,)` tokens of each row so far, including its end token.
        complete: `(B,)` whether the row has its end token.
        looped: `(B,)` whether the row ended in a loop.
        ended: `(B,)` whether further tokens of the row are ignored.
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
        """Examine the newest token of each row; call after every token.

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
    """`TextEnds` for one row whose tokens come a few at a time.

    Args:
        cap: largest number of tokens.
        eos_id: the end token.

    Attributes:
        complete: whether the row has its end token.
        looped: whether the row ended in a loop.
        ended: whether the text is finished.
    """

    def __init__(self, cap: int, eos_id: int):
        self.cap, self.complete, self.looped, self.ended = cap, False, False, cap <= 0
        self._eos_id = eos_id
        self._equal = [0] * LOOP_PHRASE  # by period: tokens in a row that equal the one a period before

    def __call__(self, tokens: Sequence[int]) -> None:
        """Examine the newest of the tokens; call after every token."""
        self.complete = tokens[-1] == self._eos_id
        same = [place + 1 < len(tokens) and tokens[-1] == tokens[-2 - place] for place in range(LOOP_PHRASE)]
        self._equal = [equal + 1 if again else 0 for equal, again in zip(self._equal, same, strict=True)]  # a new list
        needed = ((max(LOOP_TIMES, -(-LOOP_TOKENS // period)) - 1) * period for period in range(1, LOOP_PHRASE + 1))
        looping = any(equal >= enough for equal, enough in zip(self._equal, needed, strict=True))
        self.looped = looping and len(tokens) < self.cap
        self.ended = self.complete or self.looped or len(tokens) >= self.cap
