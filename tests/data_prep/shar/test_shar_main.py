"""The program: its arguments, its tasks and its statuses."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.shar import __main__ as program_module
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import shar_index as shar


def test_slurm_says_which_task_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_module._tasks(None, None) == (0, 1)
    assert program_module._tasks(2, 5) == (2, 5)
    for name, value in {"ID": "3", "MIN": "1", "COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert program_module._tasks(None, None) == (2, 4)
    assert program_module._tasks(0, 2) == (0, 2)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "9")  # of --array=1,9: gaps
    with pytest.raises(UserError, match="task 8 of 4"):
        program_module._tasks(None, None)
    with pytest.raises(UserError, match="together"):
        program_module._tasks(1, None)


def test_the_program_exports_as_a_task_of_an_array_and_verifies(tmp_path: Path, manifest: Path) -> None:
    for task in ("1", "2"):
        array = {f"SLURM_ARRAY_TASK_{name}": value for name, value in (("ID", task), ("MIN", "1"), ("COUNT", "2"))}
        done = program("--manifest", manifest, "--output", tmp_path, "--shard-size", 4, "--jobs", 1, **array)
        assert done.returncode == 0, done.stderr
    assert "verified 10 cuts" in done.stdout
    shutil.rmtree(tmp_path / shar.INDEX / "joined")
    assert "verified 10 cuts" in program("--verify", tmp_path, "--jobs", 1).stdout
    (tmp_path / shar.cuts_name(1)).unlink()
    done = program("--verify", tmp_path, "--jobs", 1)
    assert done.returncode == 2
    assert "cuts.000001.jsonl is missing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--manifest", "gone.jsonl.gz"], "manifest gone.jsonl.gz does not exist"),
        (["--manifest", "empty.jsonl"], "manifest empty.jsonl has no cuts"),
        ([], "give --manifest and --output, or --verify"),
        (["--verify", "nothing"], "nothing is no folder that data_prep.shar has written"),
    ],
)
def test_bad_arguments_are_one_clear_line(tmp_path: Path, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    monkeypatch.setattr(sys, "argv", ["shar", *arguments, *(["--output", "out"] if arguments else [])])
    with pytest.raises(UserError) as error:
        program_module.main()
    assert message in str(error.value)


def program(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "data_prep.shar", *map(str, arguments)]
    root = Path(program_module.__file__).parents[2]
    everything = {**os.environ, "PYTHONPATH": str(root), **environment}
    return subprocess.run(command, cwd=root, env=everything, capture_output=True, text=True, check=False)
