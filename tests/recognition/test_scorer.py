"""Searching with our scorer finds what transformers' own generation finds, and scores it as reading it at once does."""

from typing import Any

import pytest
import torch
from test_architectures import CONFIGS, small_llm
from test_speech_llm import INSTRUCTIONS, audio_batch, build, tokens

from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.draft_scorer import LlmDraftScorer
from speechllm_pl.recognition.llm_greedy import greedy
from speechllm_pl.recognition.scorer import LlmScorer
from speechllm_pl.recognition.text_end import TextEnds, token_caps

EOS, PAD = 2, 0


@pytest.fixture(params=[(name, kind) for name in CONFIGS for kind in (torch.float32, torch.bfloat16)], ids=str)
def model(request, small_encoder: ConformerConfig) -> SpeechLLM:
    name, kind = request.param
    return build(small_llm(name).to(kind), small_encoder, lora_r=0).eval()


@torch.no_grad()
def test_texts_are_those_of_generate_to_the_last_token(model: SpeechLLM) -> None:
    audio = model.listen(audio_batch())
    prompt = model.prompt(audio, tokens(INSTRUCTIONS))
    llm: Any = model.llm
    for suppressed in (None, [5, 7]):
        llm.generation_config.suppress_tokens = suppressed
        ends = TextEnds(token_caps(audio.frames * 0.08), EOS)
        found = greedy(LlmScorer(model, prompt), ends, PAD).tokens
        expected = llm.generate(
            inputs_embeds=prompt.embeddings.to(llm.dtype),
            attention_mask=prompt.mask,
            max_new_tokens=int(token_caps(audio.frames * 0.08).max()),
            do_sample=False,
            bos_token_id=1,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
        for row, length in enumerate(ends.lengths.tolist()):
            assert found[row, :length].tolist() == expected[row, :length].tolist()
        assert len({tuple(row) for row in found.tolist()}) > 4


@torch.no_grad()
def test_scores_are_those_of_the_whole_text_read_at_once(model: SpeechLLM) -> None:
    audio = model.listen(audio_batch())
    ends = TextEnds(token_caps(audio.frames * 0.08), EOS)
    found = greedy(LlmScorer(model, model.prompt(audio, tokens(INSTRUCTIONS))), ends, PAD)
    rows = [row[:length] for row, length in zip(found.tokens.tolist(), ends.lengths.tolist(), strict=True)]
    logits = model.logits(model.prompt(audio, tokens(INSTRUCTIONS), tokens(rows))).float().log_softmax(-1)
    tolerance = 1e-3 if model.text_embeddings.dtype == torch.float32 else 0.5
    for row, ids in enumerate(rows):
        expected = sum(logits[row, place, token].item() for place, token in enumerate(ids))
        assert found.log_probabilities[row].item() == pytest.approx(expected, abs=tolerance, rel=tolerance / 10)


@torch.no_grad()
def test_a_filter_of_ones_own_takes_the_place_of_the_suppressed_tokens(small_encoder: ConformerConfig) -> None:
    model = build(small_llm("llama"), small_encoder, lora_r=0).eval()
    prompt = model.prompt(model.listen(audio_batch()), tokens(INSTRUCTIONS))
    llm: Any = model.llm
    llm.generation_config.suppress_tokens = None
    plain = LlmScorer(model, prompt)(None)  # (B, V)
    llm.generation_config.suppress_tokens = [5, 7]

    def even(logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(torch.arange(logits.shape[-1]) % 2 == 1, -torch.inf)

    assert torch.equal(LlmScorer(model, prompt, even)(None), even(plain))
    drafted = LlmDraftScorer(model, prompt, even).score([[]] * len(plain), [[4, 6]] * len(plain))  # (B, 3, V)
    assert drafted[..., 1::2].isneginf().all()
    torch.testing.assert_close(drafted[:, 0, ::2], plain[:, ::2], rtol=1e-4, atol=1e-4)
    assert drafted[..., ::2].isfinite().all()
