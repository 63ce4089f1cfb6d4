"""Generation with an LLM that is a table of what follows what, so that every transcript is known beforehand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.llm import LlmTokenizer, SpecialTokens
from speechllm_pl.models.speech_llm import Audio, SpeechLLM
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.llm_text import generate
from speechllm_pl.recognition.text_end import EXTRA_TOKENS, TOKENS_PER_SECOND, TextEnds, token_caps

BOS, EOS, ONE, TWO, THREE = 1, 2, 4, 5, 6
ENDLESS = {BOS: ONE, **{token: token + 1 for token in range(ONE, ONE + 7)}, ONE + 7: 30, 30: ONE}
"""Eight words and a token that is none, over and over: too long for a loop."""
SIZE = 64  # ids; embeddings are one-hot, so the width is the same


def chain(steps: dict[int, int], positions: int = 2048) -> LlamaForCausalLM:
    """An LLM that says `steps[token]` after `token`, whatever came before."""
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=SIZE,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
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


def hypotheses(llm: PreTrainedModel, frames: list[int], tokenizer: LlmTokenizer, **options: Any):
    encoder = ConformerConfig(dim=8, num_blocks=1, num_heads=1, ffn_dim=8)
    config = SpeechLlmConfig(llm="chain", encoder=encoder, lora_r=0)
    model = SpeechLLM(config, config.build_speech(4), llm, SpecialTokens(BOS, EOS, unk=3)).eval()
    encoded = torch.randn(len(frames), max(frames), 8)
    embeddings = torch.randn(len(frames), max(frames), SIZE)
    lengths = torch.tensor(frames)
    no_instruction = pad_tokens([[] for _ in frames])
    audio = Audio(embeddings, lengths, encoded, lengths)
    return generate(model, audio, no_instruction, tokenizer, DecodingOptions(**options))


@pytest.fixture
def tokenizer(llm_folder: Path) -> LlmTokenizer:
    return LlmTokenizer(str(llm_folder))


def test_the_end_token_ends_the_text(tokenizer: LlmTokenizer) -> None:
    found = hypotheses(chain({BOS: ONE, ONE: TWO, TWO: EOS, EOS: THREE}), [5, 9], tokenizer)
    assert found == [Hypothesis("one two"), Hypothesis("one two")]


def test_an_empty_transcript_is_possible(tokenizer: LlmTokenizer) -> None:
    assert hypotheses(chain({BOS: EOS}), [5], tokenizer) == [Hypothesis("")]


def test_a_text_without_end_is_cut_at_the_cap_and_flagged(tokenizer: LlmTokenizer) -> None:
    found = hypotheses(chain(ENDLESS), [5, 9], tokenizer)
    caps = token_caps(torch.tensor([5, 9]) * 0.08).tolist()
    assert caps == [20, 28]
    assert [len(hypothesis.text.split()) for hypothesis in found] == [cap - cap // 9 for cap in caps]
    assert all(hypothesis.truncated and not hypothesis.looped for hypothesis in found)


def test_caps_do_not_depend_on_the_batch(tokenizer: LlmTokenizer) -> None:
    llm, frames = chain(ENDLESS), [30, 1, 12]
    together = hypotheses(llm, frames, tokenizer)
    assert together == [hypotheses(llm, [count], tokenizer)[0] for count in frames]


def test_one_row_may_meet_its_cap_while_another_ends(tokenizer: LlmTokenizer) -> None:
    """A text of 13 tokens and the end: 1 frame allows 12 tokens, 2 frames allow 14, 40 frames allow more."""
    ids = list(range(20, 33))
    steps = dict(zip([BOS, *ids], [*ids, EOS], strict=True))
    found = hypotheses(chain(steps), [1, 2, 40], tokenizer)
    assert token_caps(torch.tensor([1, 2]) * 0.08).tolist() == [12, 14]
    assert [hypothesis.truncated for hypothesis in found] == [True, False, False]


def test_a_text_ends_at_the_llms_last_position_and_is_flagged(
    tokenizer: LlmTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    """Audio of 18 frames and BOS take 19 of 24 positions: five tokens fit, and one more is said of the last."""
    found = hypotheses(chain({BOS: ONE, ONE: ONE}, positions=24), [18, 1, 23], tokenizer)
    assert [len(hypothesis.text.split()) for hypothesis in found] == [6, 12, 1]
    assert all(hypothesis.truncated for hypothesis in found)
    assert not caplog.text


def test_a_text_that_just_fits_the_positions_is_whole(tokenizer: LlmTokenizer) -> None:
    llm = chain({BOS: ONE, ONE: TWO, TWO: EOS}, positions=24)
    assert hypotheses(llm, [21, 22], tokenizer) == [Hypothesis("one two"), Hypothesis("one two", truncated=True)]


def test_audio_that_leaves_no_position_has_an_empty_text_and_is_flagged(
    tokenizer: LlmTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    llm = chain({BOS: ONE, ONE: TWO, TWO: EOS}, positions=24)
    silent = Hypothesis("", truncated=True)
    assert hypotheses(llm, [24, 5, 30], tokenizer) == [silent, Hypothesis("one two"), silent]
    assert "up to 31 of the LLM's 24 positions, so nothing is said of 2 utterance(s)" in caplog.text
    assert hypotheses(llm, [24], tokenizer) == [silent]


def test_a_row_at_the_last_learned_position_waits_for_the_others(tokenizer: LlmTokenizer) -> None:
    """GPT-2 looks positions up in a table, also those of the padding that a row is fed when its text has ended."""
    config = GPT2Config(vocab_size=SIZE, n_embd=SIZE, n_layer=1, n_head=2, n_positions=24, tie_word_embeddings=False)
    llm = GPT2LMHeadModel(config)
    with torch.no_grad():
        for silent in (llm.transformer.h[0].attn.c_proj, llm.transformer.h[0].mlp.c_proj, llm.transformer.wpe):
            silent.weight.zero_()
        llm.transformer.wte.weight.copy_(torch.eye(SIZE))
        llm.lm_head.weight.zero_()
        llm.lm_head.weight[ONE, [BOS, ONE]] = 1
    found = hypotheses(llm, [22, 3, 30], tokenizer)
    assert [len(hypothesis.text.split()) for hypothesis in found] == [2, 16, 0]


def test_caps_grow_with_the_audio() -> None:
    frames = torch.arange(1, 400)
    seconds = frames.double() * 0.08
    expected = [EXTRA_TOKENS + -(-round(s * 1000) * TOKENS_PER_SECOND // 1000) for s in seconds.tolist()]
    assert token_caps(frames * 0.08).tolist() == expected


# loops


def loop_end(ids: list[int]) -> int | None:
    """After how many tokens a loop is seen, by looking at all that was written after every token."""
    for length in range(1, len(ids) + 1):
        for period in range(1, 9):
            times = max(8, -(-24 // period))
            tail = ids[max(0, length - times * period) : length]
            if len(tail) == times * period and tail == tail[:period] * times:
                return length
    return None


def test_a_text_that_loops_ends_there_and_is_flagged_whatever_its_batch(tokenizer: LlmTokenizer) -> None:
    """The second row is capped before its loop is seen; nothing that is generated for others changes a row."""
    llm, frames = chain({BOS: ONE, ONE: TWO, TWO: THREE, THREE: TWO}), [60, 5, 80]
    found = hypotheses(llm, frames, tokenizer)
    looped = Hypothesis("one" + 12 * " two three", truncated=True, looped=True)
    assert found == [looped, Hypothesis("one" + 9 * " two three" + " two", truncated=True), looped]
    assert found == [hypotheses(llm, [count], tokenizer)[0] for count in frames]


def test_a_loop_does_not_hold_its_batch_to_the_cap(tokenizer: LlmTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    real = TextEnds.__call__
    monkeypatch.setattr(TextEnds, "__call__", lambda *given: lengths.append(given[1].shape[1]) or real(*given))
    hypotheses(chain({BOS: ONE, ONE: ONE}), [400, 300], tokenizer)
    assert lengths == list(range(1, 25))


def test_padding_after_the_end_is_no_loop() -> None:
    """While the rest of a batch goes on, a row that has ended gets more padding than a loop has tokens."""
    row = [ONE, TWO, EOS] + 60 * [0]
    ends = TextEnds(torch.tensor([90]), EOS)
    for length in range(1, len(row) + 1):
        ends(torch.tensor([row[:length]]))
    assert (int(ends.lengths), bool(ends.complete), bool(ends.looped)) == (3, True, False)


@pytest.mark.parametrize("seed", range(20))
def test_loops_are_seen_just_when_looking_at_the_whole_text_would(seed: int) -> None:
    """Phrases of 1 to 12 tokens from a small vocabulary, said 1 to 30 times, one after another."""
    generator = torch.Generator().manual_seed(seed)

    def draw(most: int, least: int = 1) -> int:
        return int(torch.randint(least, most + 1, (1,), generator=generator))

    rows = []
    for _ in range(8):
        ids: list[int] = []
        while len(ids) < 200:
            phrase = torch.randint(5, (draw(12),), generator=generator).tolist()
            ids += phrase * draw(30 if draw(3) == 1 else 7)
        rows.append(ids[:200])
    written = torch.tensor(rows) + ONE  # no end token among them
    ends = TextEnds(torch.full((8,), 150), EOS)
    for length in range(1, 201):
        done = ends(written[:, :length])
        expected = [min(loop_end(row[:150]) or 150, 150) for row in rows]
        assert done.tolist() == [end <= length for end in expected]
    assert ends.lengths.tolist() == expected
    assert ends.looped.tolist() == [end < 150 for end in expected]


@pytest.mark.parametrize(("phrase", "times"), [("no", 12), ("no", 23), ("ha ha", 11), ("one two three", 7)])
def test_what_people_repeat_is_no_loop(phrase: str, times: int) -> None:
    words = ["well", *(phrase.split() * times)]
    ids = [ONE + sorted(set(words)).index(word) for word in words]
    ends = TextEnds(torch.tensor([99]), EOS)
    assert not any(ends(torch.tensor([ids[:length]])) for length in range(1, len(ids) + 1))


def test_text_from_logits_that_are_not_finite_is_marked(tokenizer: LlmTokenizer) -> None:
    """Up to its end token, that is: what a row is fed afterwards does not matter."""
    llm = chain({BOS: ONE, ONE: TWO, TWO: EOS})
    asked: list[int] = []

    def spoil(_: Any, __: Any, logits: torch.Tensor) -> None:
        asked.append(len(asked))
        if asked[-1] == 2:
            logits[1, :, 40] = torch.nan

    llm.lm_head.register_forward_hook(spoil)
    found = hypotheses(llm, [5, 9], tokenizer)
    assert [hypothesis.finite for hypothesis in found] == [True, False]


def test_the_cap_may_be_lowered(tokenizer: LlmTokenizer) -> None:
    found = hypotheses(chain({BOS: ONE, ONE: TWO, TWO: THREE, THREE: EOS}), [9, 9], tokenizer, max_new_tokens=2)
    assert found == 2 * [Hypothesis("one two", truncated=True)]
    assert [hypothesis.num_tokens for hypothesis in found] == [2, 2]
