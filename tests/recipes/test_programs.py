"""Programs are started beside this one, with the environment that the trainer wants."""

import shlex
import sys
from pathlib import Path

import pytest

from speechllm_pl.recipes.programs import Programs
from speechllm_pl.recipes.recipe import Recipe

SPEECHLLM = ("speechllm",)


@pytest.mark.parametrize(("trainer", "preloaded"), [("cpu", True), ("single", False)])
def test_training_on_a_cpu_has_an_allocator_of_its_own_where_it_is_installed(
    trainer: str, preloaded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "lib" / "python3.11" / "site-packages" / "cmeel.prefix" / "lib" / "libmimalloc.so"
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert "LD_PRELOAD" not in Programs(SPEECHLLM, trainer).training_environment
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setenv("LD_PRELOAD", "other.so")
    found = Programs(SPEECHLLM, trainer).fit(Recipe("pretrain_ctc")).environment
    assert found.get("LD_PRELOAD") == (f"other.so {library}" if preloaded else None)
    assert found.get("MIMALLOC_PURGE_DELAY") == ("-1" if preloaded else None)
    assert "LD_PRELOAD" not in Programs(SPEECHLLM, trainer).speechllm("evaluate").environment


def test_a_process_of_the_cpu_trainer_has_one_thread_unless_it_was_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert Programs(SPEECHLLM, "cpu").environment["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in Programs(SPEECHLLM, "ddp").environment
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert "OMP_NUM_THREADS" not in Programs(SPEECHLLM, "cpu").environment


def test_the_interpreter_is_the_one_beside_the_command() -> None:
    for command, interpreter in (
        ("speechllm", "python"),
        ("./speechllm", "./python"),
        ("/a b/speechllm", "/a b/python"),
    ):
        assert Programs((command,)).python == (interpreter,)
        assert Programs(("enter", "my image", command)).python == ("enter", "my image", interpreter)


def test_a_line_can_set_its_environment_itself_inside_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for container, command in (((), "/a b/speechllm"), (("enter", "my image"), "speechllm")):
        programs = Programs((*container, command))
        words = shlex.split(programs.with_environment(programs.speechllm("evaluate", "a b")))
        assert words == [*container, "env", "OMP_NUM_THREADS=1", command, "evaluate", "a b"]
        plain = Programs((*container, command), "ddp").speechllm("evaluate", "a b")
        assert programs.with_environment(plain) == plain.line
