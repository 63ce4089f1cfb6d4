"""Two processes over gloo, data-parallel or sharded, train as one process does on the same utterances.

All runs are of the command, five optimiser steps long, in fp32; one process accumulates two batches where
two processes have one each. What they are compared with is only each other and the run of one process.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import COMMAND, LOGGED, ROOT, finish, rows

from speechllm_pl.storage.checkpoints import newest_complete, read_checkpoint

STEPS = 5
DDP = ("--config", ROOT / "conf" / "trainer" / "ddp.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", 2)
FSDP = ("--config", ROOT / "conf" / "trainer" / "fsdp.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", 2)
LOCKSTEP = (*FSDP, "--trainer.strategy.init_args.gather_up_to_gib", 0)
EXACT = ("--trainer.precision", "32-true", "--trainer.gradient_clip_val", 0.1)
ADAM = ("--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "3e-3")  # the paper's: Muon rounds to bf16
SHORT = ("--trainer.max_epochs", 99, "--trainer.max_steps", STEPS, "--data.max_duration", 2.2)  # six batches an epoch
WAYS = {
    "one": ("--trainer.accumulate_grad_batches", 2),
    "ddp": DDP,
    "fsdp": FSDP,
    "fsdp, activations again": (*FSDP, "--model.activation_checkpointing", "true"),
}


def speechllm(*arguments: object, ranks: int) -> str:
    return finish([str(COMMAND), *map(str, arguments)], ranks=ranks)


def both(run: Path) -> list[dict[str, Any]]:
    """A row of each batch of each rank there is."""
    return rows(run) + rows(run, 1)


def utterances(run: Path) -> dict[int, set[str]]:
    """Utterances of each step, over all ranks."""
    steps: dict[int, set[str]] = {}
    for row in both(run):
        steps.setdefault(row["step"], set()).update(row["ids"])
    return steps


def losses(run: Path) -> list[float]:
    """Loss of each step, as every rank has it after its last batch."""
    return list({row["step"]: row["loss"] for row in both(run)}.values())


def trained(run: Path) -> dict[str, torch.Tensor]:
    path = newest_complete(run / "checkpoints")
    assert path is not None
    return read_checkpoint(path)["state_dict"]


Fit = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def fit(small_config: Path, llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """`fit(stage, way)` → the folder of a run, made once."""
    folder = tmp_path_factory.mktemp("distributed")
    runs: dict[tuple[str, str], Path] = {}

    def run(stage: str, way: str) -> Path:
        if (stage, way) not in runs:
            path = runs[stage, way] = folder / f"{stage}-{way.split(',')[0]}-{len(runs)}"
            files = (ROOT / "conf" / f"{stage}.yaml", ROOT / "conf" / "size" / "tiny.yaml")
            start: tuple[object, ...] = ()
            if stage == "finetune":
                best = run("pretrain_ctc", "one") / "checkpoints" / "best.ckpt"
                start = ("--model.llm", llm_folder, "--model.encoder_checkpoint", best, "--model.ctc_weight", 0.3)
                start += ("--model.alignment_weight", 0.5, "--model.text_masking", 0.2)
            given = [part for file in files for part in ("--config", file)]
            trainer = [part for part in WAYS[way] if part != "one"]
            before, after = (trainer[:2], trainer[2:]) if trainer[0] == "--config" else ([], trainer)
            speechllm(
                *("fit", *given, *before, "--config", small_config, *after, *start, *SHORT, *EXACT, *ADAM, LOGGED),
                *("--run", path),
                ranks=1 if way == "one" else 2,
            )
        return runs[stage, way]

    return run


@pytest.mark.parametrize("way", ["ddp", "fsdp", "fsdp, activations again"])
@pytest.mark.parametrize("stage", ["pretrain_ctc", "finetune"])
def test_ranks_train_as_one_process_does(fit: Fit, stage: str, way: str) -> None:
    one, many = fit(stage, "one"), fit(stage, way)
    assert utterances(many) == utterances(one)
    assert len(losses(one)) == STEPS
    assert len(set(losses(one))) == STEPS
    assert losses(many) == pytest.approx(losses(one), abs=1e-5)
    ours, theirs = trained(one), trained(many)
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(
            theirs[name], value, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_error_rates_of_two_ranks_are_exactly_those_of_one(fit: Fit, small_config: Path, tmp_path: Path) -> None:
    """Two utterances a rank and then one for both: the second rank's last batch is empty.

    Where the model is not gathered, it decodes silence then, since the first rank's layers need its shards.
    """
    best = fit("finetune", "one") / "checkpoints" / "best.ckpt"
    recorded = fit("finetune", "one") / "config.yaml"
    found = []
    for way in ((), DDP, FSDP, LOCKSTEP):
        text = speechllm(
            *("test", "--config", recorded, *way[:2], "--config", small_config, *way[2:], "--run", tmp_path),
            *("--ckpt_path", best, "--data.test", "train.jsonl.gz", "--data.max_duration", 3.3),
            ranks=2 if way else 1,
        )
        assert ("ranks decode in lockstep" in text) == (way == LOCKSTEP)
        found.append([line for line in text.splitlines() if line.startswith("test, ")])
    assert len(found[0]) == 2
    assert "WER de" in found[0][0]
    assert found[0] == found[1] == found[2] == found[3]


def test_in_bf16_trained_weights_stay_fp32_and_ranks_agree_nearly(
    small_config: Path, llm_folder: Path, fit: Fit, tmp_path: Path
) -> None:
    """A frozen LLM in bf16 and bf16 products, as on GPUs; sharded and not, within what bf16 rounds."""
    best = fit("pretrain_ctc", "one") / "checkpoints" / "best.ckpt"
    files = (ROOT / "conf" / "finetune.yaml", ROOT / "conf" / "size" / "tiny.yaml")
    given = [part for file in files for part in ("--config", file)]
    start = ("--model.llm", llm_folder, "--model.encoder_checkpoint", best, "--model.llm_dtype", "bfloat16")
    for name, way in (("ddp", DDP), ("fsdp", FSDP)):
        options = (*start, *SHORT, *ADAM, LOGGED, "--trainer.precision", "bf16-mixed", "--run", tmp_path / name)
        speechllm("fit", *given, *way[:2], "--config", small_config, *way[2:], *options, ranks=2)
        assert {value.dtype for key, value in trained(tmp_path / name).items() if "lora_" in key} == {torch.float32}
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=0.03)
    assert len(set(losses(tmp_path / "fsdp"))) == STEPS
