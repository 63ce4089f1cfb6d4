"""QLoRA through the real command: conf/qlora.yaml after the other files, 8-bit optimiser, resuming, two processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import COMMAND, ROOT, finish
from forwarded import lines
from untrained import save

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.storage.checkpoints import RECORD, newest_complete, read_checkpoint
from speechllm_pl.training.ctc_pretraining import CtcPretraining

CONF = ROOT / "conf"
QLORA = CONF / "qlora.yaml"
PLAIN_STEPS = (  # nothing at random, and a schedule that does not know when the run will end
    *("--model.text_masking", 0, "--model.spec_augment.freq_masks", 0, "--model.spec_augment.time_masks", 0),
    *("--model.schedule.warmup_steps", 1, "--model.optimizer.lr", 0.01, "--model.bridge.stride", 3),
)


@pytest.fixture(scope="module")
def start(
    ctc_tokenizer: CtcTokenizer, small_config: Path, llm_for_nf4: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """The arguments of stage 2 up to the run folder, from an untrained encoder."""
    encoder = ConformerConfig(dim=32, num_blocks=2, num_heads=2, ffn_dim=64, kernel_size=5, dropout=0.0)
    ctc = save(CtcPretraining(ctc_tokenizer, encoder=encoder), tmp_path_factory.mktemp("ctc") / "ctc.ckpt")
    files = (CONF / "finetune.yaml", small_config)
    return [
        "fit",
        *(part for file in files for part in ("--config", str(file))),
        *("--model.llm", str(llm_for_nf4), "--model.encoder_checkpoint", str(ctc), "--config", str(QLORA)),
        *map(str, PLAIN_STEPS),
    ]


def newest(run: Path) -> Path:
    path = newest_complete(run / "checkpoints")
    assert path is not None
    return path


def last(run: Path) -> dict[str, Any]:
    return read_checkpoint(newest(run))


def test_make_puts_the_file_after_the_others() -> None:
    command = lines("make finetune LLM=llama-7b ARGS='--config conf/qlora.yaml'")[-1]
    assert command.endswith("--config conf/qlora.yaml")
    assert command.index("conf/llm/llama-7b.yaml") < command.index("conf/qlora.yaml")


def test_a_run_is_saved_resumed_and_transcribed_with(speechllm, corpus: Path, start: list[str], tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert speechllm(*start, "--run", whole, "--trainer.max_epochs", 4).status == 0
    assert speechllm(*start, "--run", halves, "--trainer.max_epochs", 2).status == 0
    first = last(halves)
    done = speechllm(*start, "--run", halves, "--trainer.max_epochs", 4)
    assert done.status == 0, done.err
    assert "resuming" in done.out
    expected, found = last(whole), last(halves)
    assert expected["global_step"] == found["global_step"] > first["global_step"]
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, msg=name)
    moved = [name for name, value in found["state_dict"].items() if not torch.equal(value, first["state_dict"][name])]
    assert {"model.projector.linear.weight"} < set(moved)
    assert sum("lora_B" in name for name in moved) == 2 * 4

    plain = [row["text"] for row in map(json.loads, transcribed(speechllm, corpus, whole))]
    assert plain == [row["text"] for row in map(json.loads, transcribed(speechllm, corpus, halves))]


def transcribed(speechllm, corpus: Path, run: Path) -> list[str]:
    checkpoint = newest(run)
    done = speechllm("transcribe", "--checkpoint", checkpoint, "--format", "json", corpus / "test-0.wav")
    assert done.status == 0, done.err
    return done.out.splitlines()


def test_a_checkpoint_has_8_bit_state_its_quantisation_and_no_weight_of_the_llm(
    speechllm, start: list[str], tmp_path: Path
) -> None:
    assert speechllm(*start, "--run", tmp_path).status == 0
    checkpoint = last(tmp_path)
    assert checkpoint[RECORD]["settings"]["quantize"] == "nf4"
    assert checkpoint[RECORD]["settings"]["llm_dtype"] == "bfloat16"
    assert checkpoint[RECORD]["optimizer"].startswith("AdamW8bit")
    in_llm = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("model.llm.")}
    assert len(in_llm) == 2 * 4 * 2  # layers, projections, A and B
    assert all("lora_" in name and value.dtype == torch.float32 for name, value in in_llm.items())
    kinds = {tensor.dtype for tensor in tensors(checkpoint["optimizer_states"][0]["state"])}
    assert kinds == {torch.uint8, torch.float32}  # 8 bits from 4,096 parameters on


def tensors(nested: Any) -> list[torch.Tensor]:
    if isinstance(nested, dict):
        return [tensor for value in nested.values() for tensor in tensors(value)]
    return [nested] if isinstance(nested, torch.Tensor) else []


def test_two_processes_train_alike_and_leave_the_quantised_weights_as_they_are(
    start: list[str], tmp_path: Path
) -> None:
    callback = ("--trainer.callbacks+", "frozen_weights.FrozenWeights", "--trainer.callbacks.folder", tmp_path)
    given = (*start, "--config", CONF / "trainer" / "cpu.yaml", "--run", tmp_path, *callback)
    finish([str(part) for part in (COMMAND, *given)], ranks=2)
    one, other = (json.loads((tmp_path / f"weights-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert one["before"] == one["after"]
    assert one["kinds"] == ["torch.bfloat16", "torch.float32", "torch.uint8"]
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 2
    assert all(value.any() for name, value in last(tmp_path)["state_dict"].items() if "lora_B" in name)


def test_fsdp_is_refused_before_any_weight_is_read(start: list[str], llm_for_nf4: Path, tmp_path: Path) -> None:
    shutil.copytree(llm_for_nf4, tmp_path / "llm", ignore=shutil.ignore_patterns("*.safetensors"))
    fsdp = tmp_path / "fsdp.yaml"
    fsdp.write_text("trainer: {strategy: {class_path: lightning.pytorch.strategies.ModelParallelStrategy}}\n")
    given = (*start, "--model.llm", tmp_path / "llm", "--run", tmp_path / "run", "--config", fsdp)
    printed = finish([str(part) for part in (COMMAND, *given)], status=2)
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    for named in ("quantize nf4", "FSDP", "TRAINER=ddp", "--model.quantize none"):
        assert named in line
