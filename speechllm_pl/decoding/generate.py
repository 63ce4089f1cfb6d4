"""Batched greedy generation with transformers' cache, and a cap on its length that is never met silently."""

from typing import Any, cast

import torch
import transformers
from torch import Tensor

from speechllm_pl.decoding import Hypothesis
from speechllm_pl.models.conformer import FRAME_SECONDS
from speechllm_pl.models.llm import LlmTokenizer
from speechllm_pl.models.losses import Tokens
from speechllm_pl.models.speech_llm import Audio, SpeechLLM

TOKENS_PER_SECOND = 25  # fast speech has about 8 syllables a second, and a token has at least a third of one
EXTRA_TOKENS = 10


def token_caps(frames: Tensor) -> Tensor:
    """`(B,)` encoder frames → `(B,)` most tokens that so much audio can hold."""
    return (frames * FRAME_SECONDS * TOKENS_PER_SECOND).ceil().long() + EXTRA_TOKENS


class RowCaps(transformers.StoppingCriteria):
    """Ends each row at its own cap, so that an utterance's hypothesis does not depend on its batch."""

    def __init__(self, caps: Tensor):
        self.caps = caps

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # type: ignore[override]
        return self.caps.to(input_ids.device) <= input_ids.shape[1]


@torch.no_grad()
def generate(model: SpeechLLM, audio: Audio, instruction: Tokens, tokenizer: LlmTokenizer) -> list[Hypothesis]:
    """Audio embeddings of a batch → one hypothesis an utterance."""
    columns = model.prompt(audio, instruction)
    caps = token_caps(audio.frames)
    llm = cast(Any, model.llm)
    ids = llm.generate(
        inputs_embeds=columns.embeddings.to(llm.dtype),
        attention_mask=columns.mask,
        max_new_tokens=int(caps.max()),
        stopping_criteria=transformers.StoppingCriteriaList([RowCaps(caps)]),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,  # people do say things twice, whatever the LLM's own settings think
        no_repeat_ngram_size=0,
        synced_gpus=False,  # ranks decode other utterances; sharded weights are gathered before
        bos_token_id=model.bos_id,
        eos_token_id=model.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return [
        _hypothesis(row[:cap], model.eos_id, tokenizer) for row, cap in zip(ids.tolist(), caps.tolist(), strict=True)
    ]


def _hypothesis(ids: list[int], eos_id: int, tokenizer: LlmTokenizer) -> Hypothesis:
    ended = eos_id in ids
    text = ids[: ids.index(eos_id)] if ended else ids
    return Hypothesis(tokenizer.decode(text), truncated=not ended)
