"""Batched greedy generation with transformers' cache; what ends a text before its end token is never silent."""

from typing import Any, cast

import torch
import transformers
from torch import Tensor

from speechllm_pl.models.conformer import FRAME_SECONDS
from speechllm_pl.models.llm import LlmTokenizer
from speechllm_pl.models.losses import Tokens
from speechllm_pl.models.speech_llm import Audio, SpeechLLM
from speechllm_pl.recognition.hypothesis import Hypothesis, Meaningless
from speechllm_pl.recognition.options import DecodingOptions
from speechllm_pl.recognition.position_limit import lowered, positions_below

TOKENS_PER_SECOND = 25  # fast speech has about 8 syllables a second, and a token has at least a third of one
EXTRA_TOKENS = 10

# A loop is a phrase of at most so many tokens, said again and again to the end of what is written, at least so many
# times and over at least so many tokens: far beyond what people repeat ("no no no no", a telephone number's zeros).
LOOP_PHRASE = 8
LOOP_TIMES = 8
LOOP_TOKENS = 24

NEVER = 2**62
"""More tokens than any text has."""


def token_caps(frames: Tensor) -> Tensor:
    """`(B,)` encoder frames → `(B,)` most tokens that so much audio can hold."""
    return (frames * FRAME_SECONDS * TOKENS_PER_SECOND).ceil().long() + EXTRA_TOKENS


class RowEnds(transformers.StoppingCriteria):
    """Ends each row at its own cap, or in a loop, so that an utterance's hypothesis does not depend on its batch.

    A row that loops would hold its batch to the cap. Asked after every token.

    Args:
        caps: `(B,)` most tokens of each row.

    Attributes:
        ends: `(B,)` where each row ends at the latest, as far as is known.
        looped: `(B,)` whether that is because of a loop.
    """

    def __init__(self, caps: Tensor):
        periods = torch.arange(1, LOOP_PHRASE + 1, device=caps.device)
        times = (-(-LOOP_TOKENS // periods)).clamp(min=LOOP_TIMES)
        self.ends = caps
        self.looped = torch.zeros_like(caps, dtype=torch.bool)
        self._needed = (times - 1) * periods  # (P,) tokens in a row that equal the one a period before
        self._equal = torch.zeros(
            len(caps), LOOP_PHRASE, dtype=torch.long, device=caps.device
        )  # (B, P) of these so far

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # type: ignore[override]
        length = input_ids.shape[1]
        earlier = input_ids[:, max(0, length - 1 - LOOP_PHRASE) : length - 1].flip(1)  # (B, ≤ P) the last one first
        known = self._equal[:, : earlier.shape[1]]
        known += 1
        known *= earlier == input_ids[:, -1:]
        looping = (self._equal >= self._needed).any(1) & (length < self.ends)
        self.ends = torch.where(looping, length, self.ends)
        self.looped |= looping
        return self.ends <= length


class FiniteLogits(transformers.LogitsProcessor):
    """Changes nothing; sees where what a token is chosen from is not finite.

    Args:
        rows: of the batch.

    Attributes:
        until: `(B,)` how many tokens of each row were chosen from finite logits before the first that was not.
    """

    def __init__(self, rows: int, device: torch.device):
        self.until = torch.full((rows,), NEVER, device=device)
        self._written = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        most = scores.amax(-1)  # NaN where one is
        self.until = torch.where(most.isfinite(), self.until, self.until.clamp(max=self._written))
        self._written += 1
        return scores


@torch.no_grad()
def generate(
    model: SpeechLLM,
    audio: Audio,
    instruction: Tokens,
    tokenizer: LlmTokenizer,
    options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
    *,
    in_lockstep: bool = False,
) -> list[Hypothesis]:
    """Audio embeddings of a batch → one hypothesis an utterance.

    Args:
        in_lockstep: go on with idle forward passes until the last rank has ended, as sharded weights need it.
    """
    columns = model.prompt(audio, instruction)
    caps, limit = token_caps(audio.frames), model.most_positions
    if options.max_new_tokens is not None:
        caps = caps.clamp(max=options.max_new_tokens)
    if limit is not None:
        caps = lowered(caps, columns.mask.sum(1), limit)
    ends, finite = RowEnds(caps), FiniteLogits(len(caps), caps.device)
    llm = cast(Any, model.llm)
    with positions_below(limit, llm):
        ids = llm.generate(
            inputs_embeds=columns.embeddings.to(llm.dtype),
            attention_mask=columns.mask,
            max_new_tokens=max(1, int(caps.max())),
            logits_processor=transformers.LogitsProcessorList([finite]),
            stopping_criteria=transformers.StoppingCriteriaList([ends]),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # people do say things twice, whatever the LLM's own settings think
            no_repeat_ngram_size=0,
            synced_gpus=in_lockstep,
            bos_token_id=model.bos_id,
            eos_token_id=model.eos_id,
            pad_token_id=tokenizer.pad_id,
        )
    rows = zip(ids.tolist(), ends.ends.tolist(), ends.looped.tolist(), finite.until.tolist(), strict=True)
    return [_hypothesis(row[:end], looped, model.eos_id, tokenizer, until) for row, end, looped, until in rows]


def _hypothesis(
    ids: list[int], looped: bool, eos_id: int, tokenizer: LlmTokenizer, finite_until: int = NEVER
) -> Hypothesis:
    """Of what was written up to a row's end, its loop included; padding after the end token may look like a loop."""
    ended = eos_id in ids
    text = ids[: ids.index(eos_id)] if ended else ids
    kind = Hypothesis if finite_until >= len(text) + ended else Meaningless
    return kind(tokenizer.decode(text), truncated=not ended, looped=looped and not ended)
