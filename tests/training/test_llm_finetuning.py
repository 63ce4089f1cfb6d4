"""Stage 2's choices: which losses it has, and what it says of settings that have no effect or an unwanted one."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.data.batch import Batch
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training import llm_finetuning
from speechllm_pl.training.llm_finetuning import LlmFinetuning

STALE = "the CTC head stays behind"


@pytest.fixture
def stage_2(
    ctc_tokenizer: CtcTokenizer, llm_folder: Path, small_encoder: ConformerConfig
) -> Callable[..., LlmFinetuning]:
    def build(trainer: L.Trainer | None = None, **options) -> LlmFinetuning:
        module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder, **options)
        if trainer is not None:
            module.trainer = trainer
        module.configure_model()
        return module

    return build


def batch() -> Batch:
    waveforms = 0.1 * torch.randn(2, 16_000)
    return Batch(waveforms, torch.tensor([16_000, 12_000]), ["one two", "three"], ["en", "de"], ["a", "b"], [])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["ctc_loss", "next_token_loss"]),
        ({"ctc_weight": 0.0, "alignment_weight": 1.0}, ["alignment_loss", "next_token_loss"]),
        ({"freeze_encoder": True}, ["next_token_loss"]),
    ],
    ids=str,
)
def test_the_ctc_head_is_kept_in_tune_with_an_encoder_that_is_trained(
    stage_2: Callable[..., LlmFinetuning], options: dict, expected: list[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = stage_2(**options)
    terms = module.loss_terms(batch())
    assert sorted(terms) == expected
    torch.stack([weight * term.total for term, weight in terms.values()]).sum().backward()
    assert (module.speech.head.weight.grad is not None) == ("ctc_loss" in expected)


def test_a_ctc_head_that_would_stay_behind_is_told_of(stage_2: Callable[..., LlmFinetuning]) -> None:
    with pytest.warns(UserWarning, match=STALE):
        stage_2(ctc_weight=0.0)
    for options in ({}, {"freeze_encoder": True, "ctc_weight": 0.0}):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=f".*{STALE}")
            stage_2(**options)


def test_what_has_no_effect_on_a_frozen_encoder_is_told(
    stage_2: Callable[..., LlmFinetuning], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stage_2(freeze_encoder=True)
    assert "spec_augment, encoder.dropout and ctc_weight have no effect" in caplog.text


def test_a_large_frozen_llm_in_fp32_is_told_of_where_products_are_in_bf16(
    stage_2: Callable[..., LlmFinetuning], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlmFinetuning, "load_encoder", lambda _: None)
    in_bf16 = L.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False)
    in_fp32 = L.Trainer(accelerator="cpu", precision="32-true", logger=False)
    frozen, trained = nn.Linear(512, 1024).requires_grad_(False), nn.Linear(512, 1024)

    def told(llm: nn.Module, trainer: L.Trainer) -> bool:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            llm_finetuning.tell_of_fp32(llm, trainer)
        return any("--model.llm_dtype bfloat16" in str(warning.message) for warning in found)

    assert not told(frozen, in_bf16)  # for two MiB
    monkeypatch.setattr(llm_finetuning, "FP32_TOLD_FROM", 2**20)
    assert told(frozen, in_bf16)
    assert not told(frozen, in_fp32)
    assert not told(trained, in_bf16)
    assert not told(deepcopy(frozen).bfloat16(), in_bf16)
    monkeypatch.setattr(llm_finetuning, "FP32_TOLD_FROM", 1)
    with pytest.warns(UserWarning, match="--model.llm_dtype bfloat16"):
        stage_2(in_bf16)
    in_bf16.ckpt_path = "step=1.ckpt"  # of a run that goes on, whose type is that of its checkpoint
    assert not told(frozen, in_bf16)
