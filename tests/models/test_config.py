"""One description of a model: argument, record and choice of its parts."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from speechllm_pl.core.errors import UserError
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.bridges.protocol import Bridge, BridgeConfig
from speechllm_pl.models.config import CtcConfig, SpeechLlmConfig
from speechllm_pl.models.encoders import ConformerConfig
from speechllm_pl.models.features import SpecAugmentConfig


@dataclass(frozen=True)
class OtherBridge(BridgeConfig):
    queries: int = 4

    def build(self, dim: int, llm_dim: int) -> Bridge:
        raise NotImplementedError

    def embedding_lengths(self, frames: Tensor) -> Tensor:
        return 0 * frames + self.queries


DESCRIBED = SpeechLlmConfig(
    encoder=ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64),
    spec_augment=SpecAugmentConfig(freq_width=5),
    llm="somewhere",
    bridge=OtherBridge(queries=7),
    lora_r=0,
)


def test_a_record_is_plain_and_gives_the_description_again() -> None:
    record = DESCRIBED.record()
    assert record["bridge"] == {"class_path": "OtherBridge", "init_args": {"queries": 7}}
    assert record["encoder"]["class_path"] == "ConformerConfig"
    assert record["spec_augment"]["freq_width"] == 5
    assert json.loads(json.dumps(record)) == record
    assert SpeechLlmConfig.from_record(record) == DESCRIBED


def test_a_class_is_found_by_its_path_as_a_configuration_writes_it() -> None:
    record = CtcConfig().record()
    record["encoder"] = {"class_path": f"elsewhere.{ConformerConfig.__name__}", "init_args": {"num_blocks": 3}}
    assert CtcConfig.from_record(record).encoder == ConformerConfig(num_blocks=3)


def test_what_was_not_recorded_has_its_default() -> None:
    assert SpeechLlmConfig.from_record({"llm": "x", "not_described": 1}) == SpeechLlmConfig(llm="x")
    assert SpeechLlmConfig.defaults()["bridge"] == {"class_path": "ProjectorConfig", "init_args": {"stride": 3}}
    assert "llm" not in SpeechLlmConfig.defaults()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_llm": True}, "lora_r to 0"),
        ({"train_llm": True, "lora_r": 0, "quantize": "nf4"}, "keeps the LLM frozen"),
        ({"train_llm": True, "lora_r": 0, "llm_dtype": "bfloat16"}, "round its steps away"),
        ({"text_masking": 1.0}, "share of tokens"),
        ({"alignment_classes": -1}, "number of tokens"),
        ({"instruction": "{langauge}"}, "langauge"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SpeechLlmConfig(llm="x", **settings)


@pytest.mark.parametrize(("weight", "frozen", "trained"), [(0.1, False, True), (0.0, False, False), (0.1, True, False)])
def test_the_head_is_trained_with_a_loss_of_its_own_and_the_encoder(weight: float, frozen: bool, trained: bool) -> None:
    assert SpeechLlmConfig(llm="x", ctc_weight=weight, freeze_encoder=frozen).trains_ctc_head == trained


def test_the_default_bridge_is_the_papers() -> None:
    assert SpeechLlmConfig(llm="x").bridge == ProjectorConfig(stride=3)
