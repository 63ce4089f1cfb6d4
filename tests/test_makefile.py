"""Targets of make forward what they are given to the commands that do the work, word for word."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from speechllm_pl.apps.run import EXPERIMENTS, NUMBERS, OPTIONS, SUBMITTED, TARGETS

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A dry run with the environment that is active."""
    command = ["make", "-n", "VENV=", *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, check=False)


def forwarded(*arguments: str, **environment: str) -> list[str]:
    """The words of the last command that make would run, but for the number of JOBS."""
    done = make(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.replace("\\\n", " ").splitlines()[-1])
    place = words.index("--jobs")
    return words[:place] + words[place + 2 :]


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "prepare"])
def test_a_target_is_a_target_of_run(target: str) -> None:
    assert forwarded(target) == ["speechllm", "run", target, "--"]


@pytest.mark.parametrize("target", SUBMITTED)
def test_a_target_of_slurm_submits(target: str) -> None:
    assert forwarded(f"slurm-{target}") == ["speechllm", "run", target, "--slurm", "--"]


def test_every_variable_reaches_its_option_and_empty_ones_do_not() -> None:
    variables = " ".join(re.findall(r"^(?:OPTIONS|OF_ENVIRONMENT) = ((?:.*\\\n)*.*)", MAKEFILE, flags=re.MULTILINE))
    names = set(re.findall(r"(?<![(\w])[A-Z_]+", variables)) - {"OF_ENVIRONMENT"}
    assert {name.lower() for name in names} == {*OPTIONS, *NUMBERS} - {"program", "part", "side_by_side"}
    words = forwarded("finetune", *(f"{name}=a b" for name in names - {"JOBS"}))
    for name in names - {"JOBS"}:
        assert words[words.index(f"--{name.lower()}") + 1] == "a b"
    assert forwarded("finetune", "LLM=", "RUN=") == forwarded("finetune")


def test_arguments_keep_their_quotes() -> None:
    words = forwarded("finetune", "TABLE=it's $$HOME", "ARGS=--x '[1, 2]' --y it\\'s")
    assert words[3:] == ["--table", "it's $HOME", "--", "--x", "[1, 2]", "--y", "it's"]
    assert forwarded("transcribe", "ARGS=--format json", "FILES='my one.wav' two")[-3:] == ["json", "my one.wav", "two"]
    assert forwarded("report", "FILES=one.wav")[-1] == "--"


def test_only_some_variables_come_from_the_environment() -> None:
    words = forwarded("finetune", HOURS="2", LLM="a/b", SIZE="huge", TIME="3", RUN="x")
    assert sorted(words[3:]) == sorted(["--hours", "2", "--llm", "a/b", "--"])


def test_jobs_of_make_are_steps_side_by_side() -> None:
    assert "--side_by_side=4" in forwarded("data", "-j4")
    assert "--side_by_side=" in forwarded("data", "-j")
    assert not [word for word in forwarded("demo") if word.startswith("--side")]


def test_venv_names_the_programs() -> None:
    assert forwarded("pretrain-ctc", "-o", "elsewhere/installed", "VENV=elsewhere")[0] == "elsewhere/bin/speechllm"
    assert forwarded("pretrain-ctc")[0] == "speechllm"


def test_a_container_runs_what_the_environment_would() -> None:
    inside = forwarded("evaluate", "CKPT=a.ckpt", "CONTAINER=image.sif")
    enter = ["apptainer", "exec", "--nv", "--bind", str(ROOT), "--pwd", str(ROOT), "image.sif"]
    assert inside == [*enter, *forwarded("evaluate", "CKPT=a.ckpt")]
    other = forwarded("evaluate", "CONTAINER=a", "CONTAINER_RUN=enter")
    assert other == ["enter", "a", *forwarded("evaluate")]


def test_a_container_says_what_to_submit_and_make_submits_it(tmp_path: Path) -> None:
    """A program that stands for the container prints the words that it is given."""
    (tmp_path / "enter").write_text(
        "#!/bin/sh\nprintf 'printf \"<%%s>\" submitted'; for word; do printf ' %s' \"'$word'\"; done\n"
    )
    (tmp_path / "enter").chmod(0o755)
    given = ["make", "slurm-evaluate", "CONTAINER=image", f"CONTAINER_RUN={tmp_path}/enter", "ARGS=--x 'a b'"]
    done = subprocess.run(given, capture_output=True, text=True, cwd=ROOT, check=True)
    printed, submitted = done.stdout.splitlines()
    assert printed.startswith("printf ")
    assert submitted.startswith("<submitted><image><speechllm><run><evaluate><--slurm>")
    assert submitted.endswith(f"<--dry_run><--program><{tmp_path}/enter image speechllm><--><--x><a b>")


def test_the_makefile_is_short_and_lists_what_it_has() -> None:
    assert len(MAKEFILE.splitlines()) <= 100
    phony = make("--print-data-base", "help").stdout
    (declared,) = re.findall(r"^\.PHONY: (.*)$", phony, flags=re.MULTILINE)
    printed = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    listed = {line.split()[0] for line in printed.splitlines() if line.strip()}
    assert listed == set(declared.split())
    assert set(EXPERIMENTS) <= set(declared.split())
