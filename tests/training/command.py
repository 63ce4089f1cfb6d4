"""The installed command on the tones: how tests of whole runs start it and read what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("speechllm")
ON_CPU = ("--trainer.accelerator", "cpu", "--trainer.devices")
LOGGED = "--trainer.callbacks+=speechllm_pl.training.callbacks.StepLog"


def command(
    stage: str, small_config: Path, run: Path, *more: object, trainer: str = "single", devices: int = 1
) -> list:
    """`speechllm fit` in fp32 with every step logged."""
    files = (f"{stage}.yaml", "size/tiny.yaml", f"trainer/{trainer}.yaml")
    configs = [
        part for file in (*(ROOT / "conf" / file for file in files), small_config) for part in ("--config", file)
    ]
    options = (*ON_CPU, devices, "--trainer.precision", "32-true", LOGGED, "--run", run, *more)
    return [str(part) for part in (COMMAND, "fit", *configs, *options)]


def environment() -> dict[str, str]:
    """The tests' own, with the callbacks of saboteurs.py to be found."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    """In a process group of its own, its output in a file."""
    with log.open("w") as file:
        return subprocess.Popen(
            arguments, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(), start_new_session=True
        )


def finish(arguments: list[str], status: int = 0) -> str:
    """→ what it printed."""
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False)
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def rows(run: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What StepLog wrote: a row a batch."""
    path = run / f"steps-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
