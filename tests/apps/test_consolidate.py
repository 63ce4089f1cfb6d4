"""A consolidated folder: the checkpoint's own weights, or with LoRA in the LLM's, against W + B A alpha / r."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from speechllm_pl.apps.consolidate import consolidate
from speechllm_pl.apps.program_options import ConsolidateOptions
from speechllm_pl.core.errors import UserError


@pytest.fixture
def with_lora(untrained_llm: Path, tmp_path: Path) -> Path:
    """A checkpoint of stage 2 whose LoRA is not zero."""
    checkpoint = torch.load(untrained_llm, weights_only=True)
    torch.manual_seed(7)
    for name, value in checkpoint["state_dict"].items():
        if "lora_B" in name:
            value.normal_()
    torch.save(checkpoint, path := tmp_path / "lora.ckpt")
    return path


def test_weights_are_those_of_the_checkpoint(untrained_ctc: Path, tmp_path: Path) -> None:
    consolidate(ConsolidateOptions(checkpoint=str(untrained_ctc), output=str(tmp_path / "folder")))
    found, expected = load_file(tmp_path / "folder" / "model.safetensors"), torch.load(untrained_ctc, weights_only=True)
    assert set(found) == set(expected["state_dict"])
    assert all(torch.equal(found[name], value) for name, value in expected["state_dict"].items())


def test_merged_weights_of_the_llm_have_loras_product_in_them(
    with_lora: Path, llm_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    consolidate(ConsolidateOptions(checkpoint=str(with_lora), output=str(folder), merge=True))
    checkpoint = torch.load(with_lora, weights_only=True)
    settings, lora = checkpoint["speechllm"]["settings"], checkpoint["state_dict"]
    scale = settings["lora_alpha"] / settings["lora_r"]
    plain = AutoModelForCausalLM.from_pretrained(llm_folder).state_dict()
    merged = AutoModelForCausalLM.from_pretrained(folder / "llm").state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed
    for name in changed:
        (a,), (b,) = (
            [value for key, value in lora.items() if name.removesuffix(".weight") in key and f"lora_{part}." in key]
            for part in "AB"
        )
        torch.testing.assert_close(merged[name], plain[name] + scale * b @ a)
    assert len(changed) == sum("lora_A" in key for key in lora)
    assert not [name for name in load_file(folder / "model.safetensors") if "lora" in name]


def test_stage_1_has_no_llm_to_merge(untrained_ctc: Path, tmp_path: Path) -> None:
    options = ConsolidateOptions(checkpoint=str(untrained_ctc), output=str(tmp_path / "folder"), merge=True)
    with pytest.raises(UserError, match="is of stage 1 and has no LLM to merge: leave --merge out"):
        consolidate(options)
    assert not (tmp_path / "folder").exists()
