from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import cast

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BloomConfig, LlamaConfig, PretrainedConfig

from speechllm_pl.models.adjustments import checkpoint_activations
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.losses import LossTerm, WeightedTerm, weighted_sum
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.planning.step_cost import (
    Blueprint,
    StepShape,
    decoding_bytes,
    losses,
    meta_model,
    repeated_layers,
    silence,
    step_cost,
)
from speechllm_pl.recognition.draft_scorer import LlmDraftScorer
from speechllm_pl.recognition.speculative import speculative

LLM = LlamaConfig(hidden_size=128, intermediate_size=352, num_hidden_layers=6, num_attention_heads=4, vocab_size=500)
CONFIG = SpeechLlmConfig(
    encoder=ConformerConfig(dim=96, num_blocks=6, num_heads=2, ffn_dim=256),
    llm="random",
    llm_dtype="bfloat16",
    bridge=ProjectorConfig(1),
    ctc_weight=0.0,
)
BLUEPRINT = Blueprint(CONFIG, ctc_classes=40, llm=LLM)
SHAPE = StepShape(seconds=6, utterances=2)


@pytest.mark.parametrize(
    "blueprint",
    [
        replace(BLUEPRINT, llm=None),
        BLUEPRINT,
        BLUEPRINT.changed(llm_dtype="float32", bridge=ProjectorConfig(3), alignment_weight=1.0, ctc_weight=1.0),
        replace(BLUEPRINT, llm=BloomConfig(hidden_size=128, n_layer=6, n_head=4, vocab_size=500)),
    ],
    ids=["stage 1", "llama", "llama fp32, all losses", "bloom"],
)
def test_a_step_on_fake_tensors_takes_what_a_real_one_takes(
    blueprint: Blueprint, profiled_peak: Callable[[Callable], int]
) -> None:
    model = blueprint.build()

    def step() -> None:
        batch = silence(SHAPE)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # as in training on a CPU
            loss = weighted_sum(losses(model, batch))
        loss.backward()

    cost = step_cost(blueprint, SHAPE, kernels="cpu")
    assert cost.bytes == pytest.approx(profiled_peak(step), rel=0.1)


@pytest.mark.parametrize("llm", [None, LLM, BloomConfig(hidden_size=128, n_layer=6, n_head=4, vocab_size=500)])
def test_decoding_on_fake_tensors_takes_what_a_real_one_takes(
    llm: PretrainedConfig | None, profiled_peak: Callable[[Callable], int]
) -> None:
    """Up to the longest text, by a model that never ends it."""
    blueprint = replace(BLUEPRINT, llm=llm).changed(llm_dtype="float32")
    model = blueprint.build().eval()
    batch = silence(SHAPE)

    @torch.no_grad()
    def decode() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            if llm is None:
                model(batch.waveforms)
                return
            audio = model.listen(batch.waveforms)
            prompt = model.prompt(audio, batch.no_text)
            model.speech.head(audio.encoded)
            model.llm.generate(
                inputs_embeds=prompt.embeddings,
                attention_mask=prompt.mask,
                max_new_tokens=160,  # 25 a second of six, and ten
                min_new_tokens=160,
                do_sample=False,
                pad_token_id=0,
            )

    found = decoding_bytes(blueprint, SHAPE, autocast=None, kernels="cpu")
    assert found == pytest.approx(profiled_peak(decode), rel=0.25)
    assert found < 0.7 * step_cost(blueprint, SHAPE, autocast=None, kernels="cpu").bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_logits_of_drafts_count_where_the_vocabulary_is_large(
    dtype: str, profiled_peak: Callable[[Callable], int]
) -> None:
    """Drafts as long as the texts, and their end, of an LLM that believes none of them."""
    llm = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=50_000
    )
    blueprint = replace(BLUEPRINT, llm=llm).changed(llm_dtype=dtype)
    model = cast(SpeechLLM, blueprint.build().eval())
    batch = silence(SHAPE)

    @torch.no_grad()
    def decode() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            scorer = LlmDraftScorer(model, model.prompt(model.listen(batch.waveforms), batch.no_text))
            speculative(scorer, [[1] * (SHAPE.tokens - 1)] * 2, caps=[40, 40], eos_id=1)

    found = decoding_bytes(blueprint, SHAPE, autocast=None, kernels="cpu")
    assert found >= 2 * (SHAPE.tokens + 1) * 50_000 * (4 + 4)
    assert found == pytest.approx(profiled_peak(decode), rel=0.1)


def test_logits_are_told_apart_and_are_most_of_the_memory_at_a_large_vocabulary() -> None:
    llm = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=50_000
    )
    cost = step_cost(replace(BLUEPRINT, llm=llm), SHAPE)
    one = SHAPE.utterances * (SHAPE.tokens + 1) * 50_000  # of BOS and text, and of no audio
    assert one * (2 + 4 + 4) <= cost.logits <= one * (2 + 4 + 4 + 4)  # bf16, fp32, log probabilities, their gradient
    assert cost.logits > 4 * cost.activations


def test_direct_alignment_takes_no_copy_of_a_large_vocabulary() -> None:
    llm = LlamaConfig(
        hidden_size=256, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=250_000
    )
    large = replace(BLUEPRINT, llm=llm)
    large = large.changed(alignment_classes=0)
    plain, aligned = (step_cost(large.changed(alignment_weight=weight), SHAPE) for weight in (0.0, 1.0))
    assert 0 <= aligned.bytes - plain.bytes < 250_000 * 256 * 4 / 10
    assert aligned.flops - plain.flops > 3 * 2 * 250_000 * 256 * 150  # of 2 x 75 frames: forward, again, backward
    sampled = step_cost(large.changed(alignment_weight=1.0, alignment_classes=1_000), SHAPE)
    assert (sampled.flops - plain.flops) / (aligned.flops - plain.flops) == pytest.approx(1_000 / 250_000, rel=0.5)
    assert sampled.bytes <= aligned.bytes


def test_frozen_weights_cost_four_operations_a_token_and_trained_ones_six() -> None:
    llm = LlamaConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, vocab_size=50)
    shape, encoder = StepShape(10, 1), ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64)
    small = replace(BLUEPRINT, llm=llm).changed(encoder=encoder, lora_r=0, llm_dtype="float32")
    frozen, trained = (step_cost(small.changed(train_llm=train), shape) for train in (False, True))
    weights = 4 * (4 * 128 * 128 + 3 * 128 * 512)  # of the layers' matrices
    columns = 125 + 50  # frames of 80 ms, BOS and text; of BOS and text alone the head is asked
    assert (trained.flops - frozen.flops) / (2 * weights * columns) == pytest.approx(1, rel=0.05)


def test_checkpointing_saves_activations_and_computes_the_forward_pass_twice() -> None:
    plain, checkpointed = (step_cost(BLUEPRINT, SHAPE, checkpointing=on) for on in (False, True))
    assert checkpointed.bytes < 0.6 * plain.bytes
    assert 1.2 < checkpointed.flops / plain.flops < 1.5


def test_checkpointed_layers_give_the_same_gradients() -> None:
    torch.manual_seed(1)
    model = BLUEPRINT.changed(encoder=replace(CONFIG.encoder, dropout=0.0)).build()
    model.speech.augment.eval()
    batch = silence(SHAPE)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint_activations(chain.from_iterable(repeated_layers(model)))
        model.zero_grad()
        weighted_sum(losses(model, batch)).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kernels", ["cpu", "cuda"])
def test_longer_utterances_more_of_them_and_shorter_strides_take_more(kernels: str) -> None:
    def cost(seconds: float, utterances: int, blueprint: Blueprint = BLUEPRINT) -> int:
        return step_cost(blueprint, StepShape(seconds, utterances), kernels=kernels).bytes

    assert cost(6, 4) > 1.6 * cost(6, 2)
    assert cost(12, 2) > 1.6 * cost(6, 2)
    assert cost(6, 2, BLUEPRINT.changed(bridge=ProjectorConfig(3))) < cost(6, 2)


def test_a_gpus_attention_takes_no_square_of_the_length() -> None:
    long = StepShape(60, 1)
    assert step_cost(BLUEPRINT, long, kernels="cuda").bytes < 0.7 * step_cost(BLUEPRINT, long, kernels="cpu").bytes


def test_without_autocast_activations_are_fp32() -> None:
    assert step_cost(BLUEPRINT, SHAPE, autocast=None).bytes > 1.2 * step_cost(BLUEPRINT, SHAPE).bytes


def test_the_largest_batch_has_all_its_seconds_in_the_longest_utterances() -> None:
    assert StepShape.largest(80, 20) == StepShape(20, 4)
    assert StepShape.largest(80, 30) == StepShape(80 / 3, 3)
    assert StepShape.largest(10, 30) == StepShape(10, 1)


def test_a_meta_model_has_the_parameters_of_a_real_one() -> None:
    real, meta = BLUEPRINT.build(), meta_model(BLUEPRINT)
    described = [[(n, p.shape, p.dtype, p.requires_grad) for n, p in m.named_parameters()] for m in (real, meta)]
    assert described[0] == described[1]
    assert all(p.is_meta for p in meta.parameters())


def test_a_loss_that_a_model_has_beside_its_own_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan runs the model's `losses`, as training does."""
    plain, real = step_cost(BLUEPRINT, SHAPE), SpeechLLM.losses
    columns = 50_000

    def with_another(model: SpeechLLM, *given: torch.Tensor) -> dict[str, WeightedTerm]:
        wide = model.projector.linear.weight.sum() * torch.ones(columns)
        term = LossTerm(wide.tanh().sum(), torch.tensor(1))
        return {**real(model, *given), "another_loss": WeightedTerm(term, 0.5)}  # type: ignore[arg-type]

    monkeypatch.setattr(SpeechLLM, "losses", with_another)
    assert step_cost(BLUEPRINT, SHAPE).bytes - plain.bytes >= 4 * columns
