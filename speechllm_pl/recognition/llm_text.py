"""Text from an LLM that has heard a batch: prompt, search and hypotheses."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import Columns, pad_tokens
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

TEXTS_AT_ONCE = 16
"""Largest number of given texts that are scored together: each has a copy of its prompt's cache."""

LOGITS_AT_ONCE = 1 << 27
"""Largest number of their logits, unless one text alone has more: 512 MiB in fp32."""

PASSES_OF_TEXTS = 2
"""Forward passes of the LLM in which given texts are scored, over the prompts and over the texts, however many parts
they are divided into."""


class Given(NamedTuple):
    """Text to be scored, of a row of the batch."""

    row: int
    text: str
    tokens: list[int]


@torch.no_grad()
def generate(
    model: SpeechLLM,
    audio: Audio,
    instruction: Padded,
    tokenizer: LlmTokenizer,
    options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
    all_ended: Callable[[bool], bool] = bool,
    drafts: Sequence[Sequence[str]] | None = None,
) -> list[Hypothesis]:
    """Return one hypothesis per utterance from a batch of audio embeddings; texts that are cut short are marked.

    Args:
        all_ended: receives whether all texts of this batch have ended, and returns whether to stop. Only for greedy
            search.
        drafts: guesses at each text, the best one first: speculative search checks that one; with a `ctc_weight` all
            become alternatives to what beam search finds.
    """
    prompt, caps = _asked(model, audio, instruction, options)
    columns = prompt.mask.shape[1] + int(caps.sum())  # with rejected ones of other rows
    if options.decoder == "speculative" and drafts is not None:
        if sees_everything(model.llm, columns):
            return _with_drafts(model, prompt, caps, tokenizer, options, [best for best, *_ in drafts])
        warnings.warn("the LLM's attention window is too short for drafts: it decodes greedily", stacklevel=2)
    if options.decoder == "beam":
        found = _by_beams(model, prompt, caps, tokenizer, options.num_beams)
        if options.ctc_weight and drafts is not None:
            found = _with_alternatives(found, _scored(model, prompt, caps, tokenizer, drafts))
        return found
    return _greedily(model, prompt, caps, tokenizer, all_ended)


@torch.no_grad()
def with_texts(
    model: SpeechLLM,
    audio: Audio,
    instruction: Padded,
    tokenizer: LlmTokenizer,
    options: DecodingOptions,
    found: Sequence[Hypothesis],
    texts: Sequence[Sequence[str]],
) -> list[Hypothesis]:
    """Add given texts, several for each utterance, to the alternatives; other arguments as of `generate`.

    They count as found by the CTC head where the best text is.
    """
    prompt, caps = _asked(model, audio, instruction, options)
    scored = _scored(model, prompt, caps, tokenizer, texts)
    origins = [[replace(text, by_ctc=best.by_ctc) for text in own] for best, own in zip(found, scored, strict=True)]
    return _with_alternatives(found, origins)


def _asked(model: SpeechLLM, audio: Audio, instruction: Padded, options: DecodingOptions) -> tuple[Columns, Tensor]:
    """The prompts of a batch, and the largest number of tokens of each text, `(B,)`."""
    prompt = model.prompt(audio, instruction)
    caps = token_caps(audio.frames * model.speech.seconds_per_frame)
    if options.max_new_tokens is not None:
        caps = caps.clamp(max=options.max_new_tokens)
    if model.most_positions is not None:
        caps = lowered(caps, prompt.mask.sum(1), model.most_positions)
    return prompt, caps


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
            [] if row.draft_log_probability is None else [_drafted(draft, guess, row.draft_log_probability)]
            for draft, guess, row in zip(drafts, guesses, rows, strict=True)
        ]
        found = _with_alternatives(found, scored)
    return found


def _drafted(text: str, tokens: Sequence[int], log_probability: float) -> Hypothesis:
    return Hypothesis(text, log_probability=log_probability, num_tokens=len(tokens) + 1, by_ctc=True)


def _with_alternatives(found: Sequence[Hypothesis], others: Sequence[Sequence[Hypothesis]]) -> list[Hypothesis]:
    """Add scored texts to the alternatives of each row, unless they are among them, and their passes to its own."""
    joined = []
    for each, texts in zip(found, others, strict=True):
        own = each.alternatives or (each,)
        known = {text.text for text in own}
        new = {text.text: text for text in texts if text.text not in known}
        passes = each.passes + sum(text.passes for text in texts)
        joined.append(replace(each, alternatives=(*own, *new.values()), passes=passes))
    return joined


def _scored(
    model: SpeechLLM, prompt: Columns, caps: Tensor, tokenizer: LlmTokenizer, texts: Sequence[Sequence[str]]
) -> list[list[Hypothesis]]:
    """Score given texts of each row, but for those longer than its cap; the first one of a row counts its passes."""
    found: list[list[Hypothesis]] = [[] for _ in texts]
    flat = [
        Given(row, text, tokens)
        for row, (own, cap) in enumerate(zip(texts, caps.tolist(), strict=True))
        for text, tokens in zip(own, tokenizer.encode(own), strict=True)
        if len(tokens) < cap
    ]
    for chunk in _chunks(flat, LOGITS_AT_ONCE // model.text_embeddings.shape[0]):
        rows = sorted({each.row for each in chunk})
        places = torch.tensor(rows, device=caps.device)
        offers = [[*each.tokens, model.tokens.eos] for each in chunk]
        scorer = LlmDraftScorer(model, Columns(*(part[places] for part in prompt)))
        scores = _read_at_once(scorer, [rows.index(each.row) for each in chunk], offers)
        for each, score in zip(chunk, scores, strict=True):
            if isfinite(score):  # else the LLM forbids it
                passes = 0 if found[each.row] else PASSES_OF_TEXTS
                found[each.row].append(replace(_drafted(each.text, each.tokens, score), passes=passes))
    return found


def _chunks(texts: Sequence[Given], most: int) -> Iterator[list[Given]]:
    """Divide texts, in their order, so that a part has at most `most` tokens with padding, or one text."""
    chunk: list[Given] = []
    for text in texts:
        longest = max(len(each.tokens) for each in (*chunk, text)) + 1
        if chunk and (len(chunk) == TEXTS_AT_ONCE or longest * (len(chunk) + 1) > most):
            yield chunk
            chunk = []
        chunk.append(text)
    if chunk:
        yield chunk


def _read_at_once(scorer: LlmDraftScorer, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> list[float]:
    """Log-probabilities of texts, each behind one of the scorer's rows: the prompts are read once, then the texts."""
    empty: list[list[int]] = [[]]
    after_bos = scorer.score(empty * (max(rows) + 1), empty * (max(rows) + 1))  # (R, 1, V)
    scorer.keep(rows)
    within = scorer.score(empty * len(texts), texts)[:, :-1]  # (N, K - 1, V)
    ids, lengths = pad_tokens(texts, within.device)
    first = after_bos[list(rows), 0].log_softmax(-1).gather(1, ids[:, :1])  # (N, 1)
    later = within.gather(2, ids[:, 1:, None])[:, :, 0] - within.logsumexp(-1)  # (N, K - 1)
    inside = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    return (first[:, 0] + later.masked_fill(~inside, 0.0).sum(1)).tolist()


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
