"""The commands that a target of make comes to: make forwards to `speechllm run`, which prints them."""

import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
COMMAND = Path(sys.executable).with_name("speechllm")


def forwarded(command: str) -> list[list[str]]:
    """The words of each line that a make command would run, with the environment that is active."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        [*shlex.split(command), "-n", "VENV="], capture_output=True, text=True, cwd=ROOT, env=clean, check=False
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.replace("\\\n", " ").splitlines()]


@cache
def lines(command: str, prepared: bool = True) -> list[str]:
    """The plain lines that a command comes to, of make or of `speechllm run`.

    Args:
        command: as a user types it.
        prepared: whether data and tokenizer of the corpus are there, as they would be for who types it.
    """
    words = shlex.split(command)
    if words[0] == "make":
        (words,) = forwarded(command)
    assert words[:2] == ["speechllm", "run"]
    with TemporaryDirectory() as folder:
        (Path(folder) / "conf").symlink_to(ROOT / "conf")
        data = words[words.index("--data") + 1] if "--data" in words else "spoken_numbers"
        (Path(folder) / "data" / data).mkdir(parents=True)
        if "--table" in words and not (table := Path(words[words.index("--table") + 1])).is_absolute():
            (Path(folder) / table).mkdir(parents=True)
        for name in ("train.jsonl.gz", "tokenizer.model") if prepared else ():
            (Path(folder) / "data" / data / name).touch()
        done = subprocess.run(
            [COMMAND, "run", words[2], "--dry-run", *words[3:]], capture_output=True, text=True, cwd=folder, check=False
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(str(COMMAND), "speechllm").splitlines()
