"""An LLM in NF4: what its bytes are, that it computes as its dequantised weights do, and what LoRA leaves behind."""

from pathlib import Path

import pytest
import torch
from test_architectures import CONFIGS, small_llm
from test_speech_llm import INSTRUCTIONS, TEXTS, audio_batch, build, one, tokens
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from speechllm_pl.core.errors import UserError
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.llm import LlmTokenizer, add_lora, load_llm, merge_lora
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.llm_text import generate

IDS = torch.tensor([[1, 5, 7, 4]])
BLOCK, OUTER_BLOCK = 64, 256
"""Weights that share an 8-bit scale, and scales that share a float32 one."""

# The 16 levels of arXiv 2305.14314, appendix E.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def rounded_to_nf4(weight: Tensor) -> Tensor:
    """`(out, in)` → each weight at the nearest of the 16 levels of its block's largest magnitude."""
    blocks = weight.reshape(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / scales)[:, :, None].sub(NF4).abs().argmin(2)
    return (NF4[nearest] * scales).reshape(weight.shape)


def decoded(weight: nn.Parameter) -> Tensor:
    """Values of a 4-bit weight, from its bytes: two levels a byte, scales in 8 bits around an offset."""
    state = weight.quant_state
    levels = torch.stack([weight.data.flatten() >> 4, weight.data.flatten() & 15], dim=1).long()
    outer = state.state2.absmax.repeat_interleave(OUTER_BLOCK)[: state.absmax.numel()]
    scales = state.state2.code[state.absmax.long()] * outer + state.offset
    return (NF4[levels].reshape(-1, BLOCK) * scales[:, None]).reshape(state.shape).to(state.dtype)


def four_bit(llm: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in llm.named_modules() if type(module).__name__ == "Linear4bit"}


def stirred(llm: nn.Module) -> nn.Module:
    """Give the LoRA an effect, as after training."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return llm


@pytest.fixture(params=CONFIGS)
def folder(request, tmp_path: Path) -> Path:
    """A random LLM of each architecture on disk."""
    small_llm(request.param).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def plain_twin(llm_for_nf4: Path) -> PreTrainedModel:
    """The LLM of `llm_for_nf4` with the weights that NF4 stands for, in ordinary layers."""
    twin = load_llm(str(llm_for_nf4))
    for name, layer in four_bit(load_llm(str(llm_for_nf4), quantize="nf4")).items():
        twin.get_submodule(name).weight.data = decoded(layer.weight)
    return twin


# what the weights are


def test_every_matrix_of_the_layers_has_four_bits_and_the_rest_has_its_type(llm_for_nf4: Path) -> None:
    plain, llm = load_llm(str(llm_for_nf4)), load_llm(str(llm_for_nf4), torch.bfloat16, "nf4")
    expected = {name for name, m in plain.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"}
    assert set(four_bit(llm)) == expected
    for name, layer in four_bit(llm).items():
        weights, state = plain.get_submodule(name).weight.numel(), layer.weight.quant_state
        assert (layer.weight.dtype, layer.weight.numel()) == (torch.uint8, weights // 2)
        assert (state.absmax.dtype, state.absmax.numel()) == (torch.uint8, weights // BLOCK)
        assert (state.state2.absmax.dtype, state.state2.absmax.numel()) == (torch.float32, -(-weights // BLOCK // 256))
        assert layer.compute_dtype == torch.bfloat16
    others = {p.dtype for name, p in llm.named_parameters() if name.removesuffix(".weight") not in expected}
    assert others == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in llm.parameters())


def test_each_weight_is_at_the_nearest_of_sixteen_levels_of_its_block(llm_for_nf4: Path) -> None:
    plain = load_llm(str(llm_for_nf4))
    for name, layer in four_bit(load_llm(str(llm_for_nf4), quantize="nf4")).items():
        expected = rounded_to_nf4(plain.get_submodule(name).weight)
        torch.testing.assert_close(decoded(layer.weight), expected, atol=0.01, rtol=0.01)  # the scales have 8 bits


# what it computes


def speech_llm(llm: nn.Module, encoder: ConformerConfig) -> SpeechLLM:
    model = build(llm, encoder, lora_r=4)
    stirred(model)
    return model.eval()


def test_loss_and_gradients_are_those_of_the_dequantised_weights(
    llm_for_nf4: Path, plain_twin: PreTrainedModel, small_encoder: ConformerConfig
) -> None:
    losses, gradients = [], []
    for llm in (load_llm(str(llm_for_nf4), quantize="nf4"), plain_twin):
        model = speech_llm(llm, small_encoder)
        _, loss = model(audio_batch(), tokens(INSTRUCTIONS), tokens(TEXTS))
        (loss.total / loss.count).backward()
        losses.append(loss.total.item())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-3)
    in_llm = {name for name in gradients[0] if name.startswith("llm.")}
    assert in_llm
    assert all("lora_" in name for name in in_llm)
    assert "projector.linear.weight" in gradients[0]


@torch.no_grad()
def test_a_text_is_generated_as_by_the_dequantised_weights_alone_and_in_a_batch(
    llm_for_nf4: Path, plain_twin: PreTrainedModel, small_encoder: ConformerConfig
) -> None:
    tokenizer = LlmTokenizer(str(llm_for_nf4))
    found = []
    for llm in (load_llm(str(llm_for_nf4), quantize="nf4"), plain_twin):
        model = speech_llm(llm, small_encoder)
        found.append(generate(model, model.listen(audio_batch()), tokens(INSTRUCTIONS), tokenizer))
        alone = generate(model, model.listen(one(3)[0]), tokens([INSTRUCTIONS[3]]), tokenizer)
        assert alone == [found[-1][3]]
    assert found[0] == found[1]
    assert len({hypothesis.text for hypothesis in found[0]}) > 1


def test_evaluation_leaves_every_bit_as_it_was_and_training_goes_on_after_it(
    llm_for_nf4: Path, small_encoder: ConformerConfig
) -> None:
    """bitsandbytes repacks weights on CPUs with AVX512-bf16 when they are first used without a gradient."""
    model = speech_llm(load_llm(str(llm_for_nf4), quantize="nf4"), small_encoder)

    def frozen() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.llm.state_dict().items() if "lora_" not in name}

    before = frozen()
    assert any("absmax" in name for name in before)
    with torch.no_grad():
        generate(model, model.listen(audio_batch()), tokens(INSTRUCTIONS), LlmTokenizer(str(llm_for_nf4)))
        model(audio_batch(), tokens(INSTRUCTIONS), tokens(TEXTS))
    after = frozen()
    assert set(before) == set(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    _, loss = model(audio_batch(), tokens(INSTRUCTIONS), tokens(TEXTS))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if "lora_B" in name)
    assert model.projector.linear.weight.grad.any()


# merging


@torch.no_grad()
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_merged_llm_computes_what_llm_and_lora_did_and_is_plain(folder: Path, quantize) -> None:
    adapted = stirred(add_lora(load_llm(str(folder), quantize=quantize), r=4, alpha=8, dropout=0.0)).eval()
    expected = adapted(input_ids=IDS).logits
    without = load_llm(str(folder), quantize=quantize).eval()(IDS).logits
    merged = merge_lora(adapted).eval()
    torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(without, expected, atol=1e-2)
    original = AutoModelForCausalLM.from_pretrained(folder)
    assert type(merged) is type(original)
    kinds = {
        name: (type(module), getattr(module, "weight", torch.empty(0)).shape) for name, module in merged.named_modules()
    }
    assert kinds == {
        name: (type(module), getattr(module, "weight", torch.empty(0)).shape)
        for name, module in original.named_modules()
    }
    merged.save_pretrained(folder / "merged")
    again = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
    assert torch.equal(again(IDS).logits, merged(IDS).logits)
    assert not hasattr(again.config, "quantization_config")


@torch.no_grad()
def test_without_lora_merging_only_dequantises(llm_for_nf4: Path, plain_twin: PreTrainedModel) -> None:
    merged = merge_lora(load_llm(str(llm_for_nf4), quantize="nf4"))
    assert not four_bit(merged)
    for name, value in plain_twin.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value)
    plain = load_llm(str(llm_for_nf4))
    assert merge_lora(plain) is plain


@torch.no_grad()
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_merged_bf16_llm_stays_bf16_and_keeps_its_rounding(folder: Path, quantize) -> None:
    adapted = stirred(add_lora(load_llm(str(folder), torch.bfloat16, quantize), r=4, alpha=8, dropout=0.0)).eval()
    expected = adapted(input_ids=IDS).logits.float().log_softmax(-1)
    merged = merge_lora(adapted).eval()
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert (merged(IDS).logits.float().log_softmax(-1) - expected).abs().mean() < 0.1


# what is refused


def test_layers_narrower_than_a_block_are_refused_by_name(llm_folder: Path) -> None:
    """bitsandbytes' CPU kernels read the wrong scales where a row does not fill its blocks."""
    with pytest.raises(UserError, match=r"nf4 .* multiple of 64, and model\.layers\.0\.self_attn\.q_proj has 32"):
        load_llm(str(llm_folder), quantize="nf4")
