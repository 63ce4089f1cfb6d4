"""What a stage-2 module of a quantised LLM refuses, and what its checkpoints say."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from test_checkpoints import save

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.llm import is_quantized
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.checkpoints import RECORD, read_checkpoint
from speechllm_pl.storage.digests import DIGESTS
from speechllm_pl.training.llm_finetuning import LlmFinetuning


@pytest.fixture
def module(ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, llm_for_nf4: Path) -> LlmFinetuning:
    torch.manual_seed(0)
    return LlmFinetuning(ctc_tokenizer, llm=str(llm_for_nf4), encoder=small_encoder, quantize="nf4")


def test_a_wholly_trained_llm_cannot_be_quantised(ctc_tokenizer: CtcTokenizer, llm_for_nf4: Path) -> None:
    with pytest.raises(UserError, match=r"quantize nf4 keeps the LLM frozen.*LoRA.*quantize to none"):
        LlmFinetuning(ctc_tokenizer, llm=str(llm_for_nf4), lora_r=0, train_llm=True, quantize="nf4")


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_sharding_is_refused_by_name(module: LlmFinetuning, strategy: type) -> None:
    plain = LlmFinetuning(module.tokenizer, llm=module.config.llm, encoder=module.config.encoder)
    module._trainer = plain._trainer = SimpleNamespace(strategy=strategy())  # type: ignore[assignment]
    with pytest.raises(UserError, match=rf"quantize nf4.*FSDP \({strategy.__name__}\).*TRAINER=ddp.*quantize none"):
        module.setup("fit")
    assert not hasattr(module, "model")
    plain.setup("fit")


def test_whole_copies_are_not_refused(module: LlmFinetuning) -> None:
    for strategy in (DDPStrategy(), SingleDeviceStrategy()):
        module._trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
        module.setup("fit")


def test_what_is_restored_is_quantised_as_it_was_trained(module: LlmFinetuning, tmp_path: Path) -> None:
    path = save(module, tmp_path / "a.ckpt")
    restored = Recognizer.load(path)
    assert isinstance(restored.model, SpeechLLM)
    assert is_quantized(restored.model.llm)
    ours, theirs = module.model.state_dict(), restored.model.state_dict()
    assert any(name.endswith("weight.nested_absmax") for name in ours)
    assert set(ours) == set(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_without_quantisation_does_not_resume_one_with_it(
    module: LlmFinetuning, ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(save(module, tmp_path / "a.ckpt"))
    plain = LlmFinetuning(ctc_tokenizer, llm=module.config.llm, encoder=small_encoder)
    with pytest.raises(UserError, match="has quantize nf4, but this run none"):
        plain.on_load_checkpoint(checkpoint)


def test_checkpoints_from_before_quantisation_are_taken_as_without(
    ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, llm_for_nf4: Path, tmp_path: Path
) -> None:
    def older(path: Path) -> dict[str, Any]:
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint[RECORD]["settings"]["quantize"], checkpoint[DIGESTS]
        torch.save(checkpoint, path)
        return read_checkpoint(path)

    plain = LlmFinetuning(ctc_tokenizer, llm=str(llm_for_nf4), encoder=small_encoder)
    checkpoint = older(save(plain, tmp_path / "a.ckpt"))
    plain.on_load_checkpoint(checkpoint)
    restored = Recognizer.load(tmp_path / "a.ckpt")
    assert isinstance(restored.model, SpeechLLM)
    assert not is_quantized(restored.model.llm)
    quantized = LlmFinetuning(ctc_tokenizer, llm=str(llm_for_nf4), encoder=small_encoder, quantize="nf4")
    with pytest.raises(UserError, match="has quantize none, but this run nf4"):
        quantized.on_load_checkpoint(older(save(plain, tmp_path / "b.ckpt")))
