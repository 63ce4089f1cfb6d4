"""Text from an LLM that has heard a batch: prompt, search and hypotheses."""

from collections.abc import Callable

import torch

from speechllm_pl.models.llm import LlmTokenizer
from speechllm_pl.models.losses import Tokens
from speechllm_pl.models.speech_llm import Audio, SpeechLLM
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.llm_greedy import greedy
from speechllm_pl.recognition.options import DecodingOptions
from speechllm_pl.recognition.scorer import LlmScorer
from speechllm_pl.recognition.text_end import TextEnds, lowered, token_caps

SEARCHES = {"greedy": greedy}
"""By `DecodingOptions.decoder`."""


@torch.no_grad()
def generate(
    model: SpeechLLM,
    audio: Audio,
    instruction: Tokens,
    tokenizer: LlmTokenizer,
    options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
    all_ended: Callable[[bool], bool] = bool,
) -> list[Hypothesis]:
    """Audio embeddings of a batch → one hypothesis an utterance; what ends a text too soon is never silent.

    Args:
        all_ended: told whether all texts of this batch have ended; says whether to stop.
    """
    prompt = model.prompt(audio, instruction)
    caps = token_caps(audio.frames)
    if options.max_new_tokens is not None:
        caps = caps.clamp(max=options.max_new_tokens)
    if model.most_positions is not None:
        caps = lowered(caps, prompt.mask.sum(1), model.most_positions)
    ends = TextEnds(caps, model.tokens.eos)
    found = SEARCHES[options.decoder](LlmScorer(model, prompt), ends, tokenizer.pad_id, all_ended)
    return [
        Hypothesis(
            tokenizer.decode(row[: length - complete]),
            truncated=not complete,
            looped=looped,
            log_probability=log_probability,
            num_tokens=length,
        )
        for row, length, complete, looped, log_probability in zip(
            found.tokens.tolist(),
            ends.lengths.tolist(),
            ends.complete.tolist(),
            ends.looped.tolist(),
            found.log_probabilities.tolist(),
            strict=True,
        )
    ]
