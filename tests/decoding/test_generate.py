"""Generation with an LLM that is a table of what follows what, so that every transcript is known beforehand."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.decoding.generate import EXTRA_TOKENS, TOKENS_PER_SECOND, generate, token_caps
from speechllm_pl.models.conformer import ConformerConfig
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.models.llm import LlmTokenizer
from speechllm_pl.models.losses import Tokens
from speechllm_pl.models.speech_llm import Audio, SpeechLLM

BOS, EOS, ONE, TWO, THREE = 1, 2, 4, 5, 6
SIZE = 64  # ids; embeddings are one-hot, so the width is the same


def chain(steps: dict[int, int]) -> LlamaForCausalLM:
    """An LLM that says `steps[token]` after `token`, whatever came before."""
    config = LlamaConfig(
        vocab_size=SIZE, hidden_size=SIZE, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    llm = LlamaForCausalLM(config)
    with torch.no_grad():
        llm.model.layers[0].self_attn.o_proj.weight.zero_()
        llm.model.layers[0].mlp.down_proj.weight.zero_()
        llm.model.embed_tokens.weight.copy_(torch.eye(SIZE))
        llm.lm_head.weight.zero_()
        for token, following in steps.items():
            llm.lm_head.weight[following, token] = 1
    return llm


def hypotheses(llm: LlamaForCausalLM, frames: list[int], tokenizer: LlmTokenizer):
    encoder = ConformerConfig(dim=8, num_blocks=1, num_heads=1, ffn_dim=8)
    model = SpeechLLM(CtcModel(encoder, 4), llm, bos_id=BOS, eos_id=EOS, unk_id=3, lora_r=0).eval()
    encoded = torch.randn(len(frames), max(frames), 8)
    embeddings = torch.randn(len(frames), max(frames), SIZE)
    lengths = torch.tensor(frames)
    no_instruction = Tokens(*pad_tokens([[] for _ in frames]))
    return generate(model, Audio(embeddings, lengths, encoded, lengths), no_instruction, tokenizer)


@pytest.fixture
def tokenizer(llm_folder: Path) -> LlmTokenizer:
    return LlmTokenizer(str(llm_folder))


def test_the_end_token_ends_the_text(tokenizer: LlmTokenizer) -> None:
    found = hypotheses(chain({BOS: ONE, ONE: TWO, TWO: EOS, EOS: THREE}), [5, 9], tokenizer)
    assert found == [("one two", False), ("one two", False)]


def test_an_empty_transcript_is_possible(tokenizer: LlmTokenizer) -> None:
    assert hypotheses(chain({BOS: EOS}), [5], tokenizer) == [("", False)]


def test_a_text_without_end_is_cut_at_the_cap_and_flagged(tokenizer: LlmTokenizer) -> None:
    found = hypotheses(chain({BOS: ONE, ONE: ONE}), [5, 9], tokenizer)
    assert [len(hypothesis.text.split()) for hypothesis in found] == token_caps(torch.tensor([5, 9])).tolist()
    assert all(hypothesis.truncated for hypothesis in found)


def test_caps_do_not_depend_on_the_batch(tokenizer: LlmTokenizer) -> None:
    llm, frames = chain({BOS: ONE, ONE: TWO, TWO: THREE, THREE: ONE}), [30, 1, 12]
    together = hypotheses(llm, frames, tokenizer)
    assert together == [hypotheses(llm, [count], tokenizer)[0] for count in frames]


def test_one_row_may_meet_its_cap_while_another_ends(tokenizer: LlmTokenizer) -> None:
    """A text of 13 tokens and the end: 1 frame allows 12 tokens, 2 frames allow 14, 40 frames allow more."""
    ids = list(range(20, 33))
    steps = dict(zip([BOS, *ids], [*ids, EOS], strict=True))
    found = hypotheses(chain(steps), [1, 2, 40], tokenizer)
    assert token_caps(torch.tensor([1, 2])).tolist() == [12, 14]
    assert [hypothesis.truncated for hypothesis in found] == [True, False, False]


def test_caps_grow_with_the_audio() -> None:
    frames = torch.arange(1, 400)
    seconds = frames.double() * 0.08
    expected = [EXTRA_TOKENS + -(-round(s * 1000) * TOKENS_PER_SECOND // 1000) for s in seconds.tolist()]
    assert token_caps(frames).tolist() == expected
