"""LLMs of seven architectures hear alike: which layers LoRA adapts, what is trained, that batches change nothing.

Their ways to know a position are the traps: rotary (LLaMA, Qwen3, Mistral with its sliding window, Gemma, GPT-NeoX),
ALiBi (BLOOM) and learned (GPT-2), all behind padding on the left.
"""

from pathlib import Path

import pytest
import torch
import transformers
from test_speech_llm import INSTRUCTIONS, LENGTHS, TEXTS, audio_batch, build, one, tokens
from torch import nn
from transformers.pytorch_utils import Conv1D

from speechllm_pl.core.errors import UserError
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.llm import LlmTokenizer, add_lora, decoder_layers
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.llm_text import generate

# Weights large enough for random choices to differ clearly; widths that NF4 takes.
TOKENS = {"vocab_size": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LAYERS = SHAPE["num_hidden_layers"]
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**TOKENS, **SHAPE, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**TOKENS, **SHAPE, num_key_value_heads=2, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**TOKENS, **SHAPE, num_key_value_heads=2, sliding_window=8),
    "gemma": lambda: transformers.GemmaConfig(**TOKENS, **SHAPE, num_key_value_heads=1, head_dim=16),
    "bloom": lambda: transformers.BloomConfig(**TOKENS, hidden_size=64, n_layer=2, n_head=4),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**TOKENS, **SHAPE),
    "gpt2": lambda: transformers.GPT2Config(**TOKENS, n_embd=64, n_layer=2, n_head=4, n_positions=64),
}
SEPARATE = ["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"]
ADAPTED = {
    "llama": ("model.layers", SEPARATE),
    "qwen3": ("model.layers", SEPARATE),
    "mistral": ("model.layers", SEPARATE),
    "gemma": ("model.layers", SEPARATE),
    "bloom": ("transformer.h", ["self_attention.dense", "self_attention.query_key_value"]),
    "gpt_neox": ("gpt_neox.layers", ["attention.dense", "attention.query_key_value"]),
    "gpt2": ("transformer.h", ["attn.c_attn", "attn.c_proj"]),
}
"""Where the decoder layers stand, and the layers of self-attention in each."""


def small_llm(architecture: str) -> transformers.PreTrainedModel:
    torch.manual_seed(2)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]()).requires_grad_(False)


@pytest.fixture(params=CONFIGS)
def architecture(request) -> str:
    return request.param


@pytest.fixture
def model(architecture: str, small_encoder: ConformerConfig) -> SpeechLLM:
    """Model in evaluation mode, whose LoRA is not zero as when fresh, which would hide what it does."""
    model = build(small_llm(architecture), small_encoder, lora_r=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_lora_adapts_the_self_attention_of_every_layer_and_nothing_else(architecture: str) -> None:
    llm = add_lora(small_llm(architecture), r=2, alpha=4, dropout=0.0)
    adapted = {name.rpartition(".lora_A")[0] for name, _ in llm.named_parameters() if ".lora_A." in name}
    layers, names = ADAPTED[architecture]
    assert adapted == {f"base_model.model.{layers}.{number}.{name}" for number in range(LAYERS) for name in names}


def test_decoder_layers_are_found_with_and_without_lora(architecture: str) -> None:
    llm = small_llm(architecture)
    expected = list(llm.get_submodule(ADAPTED[architecture][0]))
    assert len(expected) == LAYERS
    assert decoder_layers(llm) == expected
    assert decoder_layers(add_lora(llm, r=2, alpha=4, dropout=0.0)) == expected


def test_fresh_lora_leaves_the_llm_as_it_was_and_trained_lora_does_not(architecture: str) -> None:
    ids = torch.tensor([[1, 5, 7, 4]])
    plain = small_llm(architecture).eval()(ids).logits
    llm = add_lora(small_llm(architecture).eval(), r=2, alpha=4, dropout=0.0)
    assert torch.equal(llm(input_ids=ids).logits, plain)
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    assert not torch.allclose(llm(input_ids=ids).logits, plain, atol=1e-2)


def test_only_encoder_projector_and_lora_have_gradients(model: SpeechLLM, architecture: str) -> None:
    waveforms = audio_batch()
    _, loss = model(waveforms, tokens(INSTRUCTIONS), tokens(TEXTS))
    (loss.total / loss.count).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    in_llm = {name for name in moved if name.startswith("llm.")}
    assert in_llm == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(in_llm) == 2 * LAYERS * len(ADAPTED[architecture][1])
    assert {"projector.linear.weight", "speech.encoder.blocks.0.attention.output.weight"} <= moved
    assert not any(name.startswith("speech.head") for name in moved)


@torch.no_grad()
def test_loss_is_that_of_the_llm_on_one_utterances_plain_sequence(model: SpeechLLM) -> None:
    _, loss = model(audio_batch(), tokens(INSTRUCTIONS), tokens(TEXTS))
    expected, embed = 0.0, model.llm.get_input_embeddings()
    for row, text in enumerate(TEXTS):
        audio = model.listen(one(row)[0])
        before, after = (embed(torch.tensor(ids, dtype=torch.long)) for ids in (INSTRUCTIONS[row], [1, *text]))
        sequence = torch.cat([before, audio.embeddings[0], after])
        labels = torch.tensor([*text, 2])
        logits = model.llm(inputs_embeds=sequence[None]).logits[0, -len(labels) :]
        expected += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_a_batch_of_eight_gives_what_eight_batches_of_one_give(model: SpeechLLM, llm_folder: Path) -> None:
    tokenizer = LlmTokenizer(str(llm_folder))
    audio, loss = model(audio_batch(), tokens(INSTRUCTIONS), tokens(TEXTS))
    together = generate(model, audio, tokens(INSTRUCTIONS), tokenizer)
    assert len({found.text for found in together}) > 4
    total = 0.0
    for row in range(len(LENGTHS)):
        alone, loss_alone = model(*one(row))
        total += loss_alone.total.item()
        assert generate(model, alone, tokens([INSTRUCTIONS[row]]), tokenizer) == [together[row]]
    assert loss.total.item() == pytest.approx(total, rel=1e-4)


@torch.no_grad()
def test_generation_takes_the_likeliest_token_of_the_full_forward_at_every_step(
    model: SpeechLLM, llm_folder: Path
) -> None:
    tokenizer, row = LlmTokenizer(str(llm_folder)), 1
    audio, instruction = model.listen(one(row)[0]), tokens([INSTRUCTIONS[row]])
    [found] = generate(model, audio, instruction, tokenizer)
    ids: list[int] = []
    while len(ids) < 2 * int(audio.frames[0]) + 10 and 2 not in ids:  # 25 tokens a second are 2 a frame
        ids.append(int(model.logits(model.prompt(audio, instruction, tokens([ids])))[0, -1].argmax()))
    assert found.text == tokenizer.decode(ids)


def test_lora_weights_are_float32_on_a_bf16_llm(architecture: str) -> None:
    llm = add_lora(small_llm(architecture).to(torch.bfloat16), r=2, alpha=4, dropout=0.0)
    kinds = {("lora_" in name, parameter.dtype) for name, parameter in llm.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


# what the general rule meets elsewhere


class Mixture(nn.Module):
    """A layer whose list of experts is longer than the list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"wqkv": nn.Linear(4, 12), "wo": nn.Linear(4, 4)})
        self.post_attention_norm = nn.LayerNorm(4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))


class MixtureLlm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mixture() for _ in range(2))
        self.lm_head = nn.Linear(4, 12)

    def prepare_inputs_for_generation(self) -> None:
        """peft wants every causal LM to have this."""


def test_the_experts_of_a_mixture_are_not_taken_for_layers() -> None:
    llm = MixtureLlm()
    assert decoder_layers(llm) == list(llm.blocks)
    lora = add_lora(llm, r=2, alpha=4, dropout=0.0)
    adapted = {name.rpartition(".lora_A")[0] for name, _ in lora.named_parameters() if ".lora_A." in name}
    assert {name.partition("blocks.")[2] for name in adapted} == {
        f"{layer}.attention.{name}" for layer in (0, 1) for name in ("wqkv", "wo")
    }


def test_layers_that_cannot_be_found_are_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"Sequential has no list of decoder layers"):
        decoder_layers(nn.Sequential(nn.Linear(2, 2)))
    mixers = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"mixer": Conv1D(2, 2)}) for _ in range(3))})
    with pytest.raises(UserError, match=r"its linear layers are layers\.\*\.mixer\. Set --model\.lora_r 0"):
        add_lora(mixers, r=2, alpha=4, dropout=0.0)
