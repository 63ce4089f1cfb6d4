"""Variables of make reach the command that it prints and runs; a wrong choice is told in one line."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*arguments: str) -> subprocess.CompletedProcess:
    """A dry run with the environment that is active; make's own variables come from nowhere else."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", "-n", "VENV=", *arguments], capture_output=True, text=True, cwd=ROOT, env=clean, check=False
    )


def last_command(*arguments: str) -> str:
    done = make(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ").splitlines()[-1]


@pytest.mark.parametrize("target", ["pretrain-ctc", "finetune"])
def test_data_size_trainer_and_arguments_reach_the_command(target: str) -> None:
    given = ("DATA=fsdd", "SIZE=tiny", "TRAINER=single", "RUN=runs/mine", "ARGS=--trainer.max_epochs 3 --model.a b")
    command = last_command(target, *given)
    for part in ("conf/data/fsdd.yaml", "conf/size/tiny.yaml", "conf/trainer/single.yaml", "--run runs/mine"):
        assert f" {part}" in command
    assert command.endswith("--trainer.max_epochs 3 --model.a b")


def test_the_command_is_printed_before_it_runs() -> None:
    printed, _, executed = last_command("pretrain-ctc", "RUN=runs/mine").partition("; ")
    assert printed == f"echo '{executed}'"


def test_checkpoints_are_chosen_by_name() -> None:
    assert "--model.encoder_checkpoint 'a.ckpt'" in last_command("finetune", "CKPT=a.ckpt")
    assert "--ckpt_path a.ckpt" in last_command("pretrain-ctc", "CKPT=a.ckpt")
    assert "--checkpoint '[a.ckpt,b.ckpt]'" in last_command("evaluate", "CKPT=a.ckpt,b.ckpt")
    assert "--cuts data/fsdd/dev.jsonl.gz" in last_command("evaluate", "CKPT=a.ckpt", "DATA=fsdd", "SPLIT=dev")
    assert "--checkpoint a.ckpt" in last_command("transcribe", "CKPT=a.ckpt", "FILES=one.wav")


def test_another_llm_is_not_built_here() -> None:
    given = make("finetune", "DATA=fsdd", "LLM=/models/llama")
    assert "--model.llm /models/llama" in given.stdout
    assert "tiny_llm" not in given.stdout


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "llm").glob("*.yaml")))
def test_an_llm_of_the_configuration_is_given_as_its_file_and_not_built(name: str) -> None:
    given = make("finetune", "DATA=fsdd", f"LLM={name}")
    assert f"--config conf/llm/{name}.yaml" in given.stdout
    assert "--model.llm" not in given.stdout
    assert "tiny_llm" not in given.stdout


def test_ablations_become_overrides_with_a_run_folder_of_their_own_and_are_empty_by_default() -> None:
    command = last_command("finetune", "STRIDE=6", "LORA_R=0", "MASKING=0.125", "ARGS=--model.stride 3")
    assert "--model.stride 6 --model.lora_r 0 --model.text_masking 0.125 --model.stride 3" in command
    assert "--run runs/finetune/spoken_numbers-tiny-stride6-r0-masking0.125 " in command
    plain = last_command("finetune")
    assert "--run runs/finetune/spoken_numbers-tiny " in plain
    assert not any(option in plain for option in ("--model.stride", "--model.lora_r", "--model.text_masking"))


def test_venv_names_the_programs() -> None:
    inside = ["-o", "elsewhere/installed", "VENV=elsewhere"]
    assert "; elsewhere/bin/speechllm fit" in last_command("pretrain-ctc", *inside)
    assert "; speechllm fit" in last_command("pretrain-ctc")


@pytest.mark.parametrize(("name", "known"), [("DATA", "fsdd"), ("SIZE", "paper-24"), ("TRAINER", "ddp")])
def test_an_unknown_choice_is_refused_with_those_that_exist(name: str, known: str) -> None:
    done = make("pretrain-ctc", f"{name}=nosuch")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"{name}=nosuch" in line
    assert known in line


def test_own_data_needs_a_table() -> None:
    done = make("data", "DATA=table", "ROOT=data/nosuch")
    assert done.returncode == 2
    assert "TABLE=<folder or table>" in done.stderr
    assert len(done.stderr.splitlines()) == 1
