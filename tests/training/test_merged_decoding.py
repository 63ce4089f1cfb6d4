"""LoRA is merged while text is generated: the same texts, and weights that are the same afterwards."""

from pathlib import Path

import pytest
import torch
from torch import nn

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training.llm_finetuning import LlmFinetuning


@pytest.fixture
def module(ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, llm_folder: Path) -> LlmFinetuning:
    torch.manual_seed(0)
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder)
    module.configure_model()
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return module.eval()


def projection(module: LlmFinetuning) -> torch.Tensor:
    return module.model.llm.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.detach()


def test_decoding_has_lora_in_the_weights_and_finds_the_same_texts(module: LlmFinetuning, corpus: Path) -> None:
    batch = next(iter(SpeechDataModule(str(corpus), dev="train.jsonl.gz", max_duration=20).val_dataloader()))
    expected = module.transcribe(batch)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.begin_decoding()
    assert not torch.equal(
        projection(module), before["model.llm.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"]
    )
    assert module.transcribe(batch) == expected
    module.end_decoding()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert len({hypothesis.text for hypothesis in expected["llm"]}) > 1


@pytest.mark.parametrize("option", [{"lora_r": 0}, {"quantize": "nf4", "llm_dtype": "bfloat16"}])
def test_without_lora_or_in_four_bits_nothing_is_merged(
    ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, llm_for_nf4: Path, option: dict
) -> None:
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_for_nf4), encoder=small_encoder, **option)
    module.configure_model()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.begin_decoding()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.end_decoding()
