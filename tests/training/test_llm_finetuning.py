"""Stage 2's choices: which losses it has, and what it says of settings that have no effect or an unwanted one."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.data.batch import Batch
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training.llm_finetuning import LlmFinetuning

STALE = "the CTC head stays behind"


@pytest.fixture
def stage_2(
    ctc_tokenizer: CtcTokenizer, llm_folder: Path, small_encoder: ConformerConfig
) -> Callable[..., LlmFinetuning]:
    def build(**options) -> LlmFinetuning:
        module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder, **options)
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
