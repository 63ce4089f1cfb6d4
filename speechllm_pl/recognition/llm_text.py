"""Text from an LLM that has heard a batch: prompt, search and hypotheses."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import Columns
from speechllm_pl.models.llm import LlmTokenizer
from speechllm_pl.models.speech_llm import Audio, SpeechLLM
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.draft_scorer import LlmDraftScorer, sees_everything
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.llm_beam import beam_search
from speechllm_pl.recognition.llm_greedy import greedy
from speechllm_pl.recognition.scorer import LlmScorer
from speechllm_pl.recognition.speculative import speculative
from speechllm_pl.recognition.text_end import TextEnds, lowered, token_caps


@torch.no_grad()
def generate(
    model: SpeechLLM,
    audio: Audio,
    instruction: Padded,
    tokenizer: LlmTokenizer,
    options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
    all_ended: Callable[[bool], bool] = bool,
    drafts: Sequence[str] | None = None,
) -> list[Hypothesis]:
    """Return one hypothesis per utterance from a batch of audio embeddings; texts that are cut short are marked.

    Args:
        all_ended: receives whether all texts of this batch have ended, and returns whether to stop. Only for greedy
            search.
        drafts: guess at each text, for speculative search.
    """
    prompt = model.prompt(audio, instruction)
    caps = token_caps(audio.frames * model.speech.seconds_per_frame)
    if options.max_new_tokens is not None:
        caps = caps.clamp(max=options.max_new_tokens)
    if model.most_positions is not None:
        caps = lowered(caps, prompt.mask.sum(1), model.most_positions)
    columns = prompt.mask.shape[1] + int(caps.sum())  # with rejected ones of other rows
    if options.decoder == "speculative" and drafts is not None:
        if sees_everything(model.llm, columns):
            return _with_drafts(model, prompt, caps, tokenizer, options, drafts)
        warnings.warn("the LLM's attention window is too short for drafts: it decodes greedily", stacklevel=2)
    if options.decoder == "beam":
        found = _by_beams(model, prompt, caps, tokenizer, options.num_beams)
        if options.ctc_weight and drafts is not None:
            scored = _scored(model, prompt, caps, tokenizer, drafts)
            found = [
                _with_alternative(replace(each, passes=each.passes + 1), draft)
                for each, draft in zip(found, scored, strict=True)
            ]
        return found
    return _greedily(model, prompt, caps, tokenizer, all_ended)


def _greedily(
    model: SpeechLLM, prompt: Columns, caps: Tensor, tokenizer: LlmTokenizer, all_ended: Callable[[bool], bool]
) -> list[Hypothesis]:
    ends = TextEnds(caps, model.tokens.eos)
    found = greedy(LlmScorer(model, prompt), ends, tokenizer.pad_id, all_ended)
    lengths = ends.lengths.tolist()
    tokens = [row[:length] for row, length in zip(found.tokens.tolist(), lengths, strict=True)]
    how_ended = ends.complete.tolist(), ends.looped.tolist()
    rows = zip(tokens, *how_ended, found.log_probabilities.tolist(), lengths, strict=True)
    return [_hypothesis(tokenizer, *row) for row in rows]


def _hypothesis(
    tokenizer: LlmTokenizer,
    tokens: Sequence[int],
    complete: bool,
    looped: bool,
    log_probability: float,
    passes: int,
    drafted: int = 0,
) -> Hypothesis:
    """Text of tokens of which the last one is the end token if they are `complete`."""
    return Hypothesis(
        tokenizer.decode(tokens[: len(tokens) - complete]),
        truncated=not complete,
        looped=looped,
        log_probability=log_probability,
        num_tokens=len(tokens),
        passes=passes,
        drafted=drafted,
    )


def _with_drafts(
    model: SpeechLLM,
    prompt: Columns,
    caps: Tensor,
    tokenizer: LlmTokenizer,
    options: DecodingOptions,
    drafts: Sequence[str],
) -> list[Hypothesis]:
    guesses = tokenizer.encode(drafts)
    scorer = LlmDraftScorer(model, prompt)
    rows = speculative(scorer, guesses, caps.tolist(), model.tokens.eos, options.accept_probability)
    found = [
        _hypothesis(
            tokenizer, row.tokens, row.end.complete, row.end.looped, row.log_probability, row.passes, row.accepted
        )
        for row in rows
    ]
    if options.ctc_weight:
        scored = [
            _draft(*each) for each in zip(drafts, guesses, (row.draft_log_probability for row in rows), strict=True)
        ]
        found = [_with_alternative(each, draft) for each, draft in zip(found, scored, strict=True)]
    return found


def _draft(text: str, tokens: Sequence[int], log_probability: float | None) -> Hypothesis | None:
    if log_probability is None:
        return None
    return Hypothesis(text, log_probability=log_probability, num_tokens=len(tokens) + 1, by_ctc=True)


def _with_alternative(found: Hypothesis, other: Hypothesis | None) -> Hypothesis:
    """Add a text to the alternatives, unless it is among them."""
    texts = found.alternatives or (found,)
    if other is not None and other.text not in [each.text for each in texts]:
        texts = (*texts, other)
    return replace(found, alternatives=texts)


def _scored(
    model: SpeechLLM, prompt: Columns, caps: Tensor, tokenizer: LlmTokenizer, texts: Sequence[str]
) -> list[Hypothesis | None]:
    """Score given texts in one pass of the LLM; None where a text is longer than the cap."""
    tokens = tokenizer.encode(texts)
    offers = [
        [*each, model.tokens.eos] if len(each) < cap else [] for each, cap in zip(tokens, caps.tolist(), strict=True)
    ]
    log_probabilities = LlmDraftScorer(model, prompt).score([[]] * len(offers), offers).log_softmax(-1)  # (B, K + 1, V)
    scored = []
    for text, offer, row in zip(texts, offers, log_probabilities, strict=True):
        total = row[range(len(offer)), offer].sum().item() if offer else None
        scored.append(_draft(text, offer[:-1], total))
    return scored


def _by_beams(
    model: SpeechLLM, prompt: Columns, caps: Tensor, tokenizer: LlmTokenizer, num_beams: int
) -> list[Hypothesis]:
    found = []
    for search in beam_search(LlmScorer(model, prompt), caps.tolist(), model.tokens.eos, num_beams):
        texts = tuple(
            _hypothesis(tokenizer, beam.tokens, beam.end.complete, beam.end.looped, beam.log_probability, search.passes)
            for beam in search.beams
        )
        found.append(replace(texts[0], alternatives=texts))
    return found
