"""The command in processes of its own: how tests of whole runs start it and read what it left.

`start` starts what is installed, as a user does, and the command starts its other ranks itself. `finish` is for tests
of what comes out: its processes are forked from one that has imported everything, which takes seconds of each core.
"""

import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from speechllm_pl.data.loader import PRELOADED

ROOT = Path(__file__).parents[1]
COMMAND = Path(sys.executable).with_name("speechllm")
ON_CPU = ("--trainer.accelerator", "cpu", "--trainer.devices")
LOGGED = "--trainer.callbacks+=speechllm_pl.training.callbacks.StepLog"
HELPERS = [str(Path(__file__).parent / folder) for folder in ("apps", "training")]
"""Where callbacks of tests are found: frozen_weights, saboteurs."""
PATIENCE = 600  # seconds that a run may take
SERVER = multiprocessing.get_context("forkserver")  # of which a process has one, for its loaders as well
if multiprocessing.parent_process() is None:  # what is forked from it has servers of its own, for loaders alone
    PRELOADED += [
        "data_prep.table",
        "speechllm_pl.apps.average",
        "speechllm_pl.apps.consolidate",
        "speechllm_pl.apps.data_report",
        "speechllm_pl.apps.evaluate",
        "speechllm_pl.apps.fetch",
        "speechllm_pl.apps.plan",
        "speechllm_pl.apps.report",
        "speechllm_pl.apps.trainer_cli",
        "speechllm_pl.apps.transcribe",
        "speechllm_pl.training.callbacks",
        "speechllm_pl.training.ctc_pretraining",
        "speechllm_pl.training.interruption",
        "speechllm_pl.training.llm_finetuning",
        "speechllm_pl.training.probe",
        "speechllm_pl.training.sharding",
    ]
    SERVER.set_forkserver_preload(PRELOADED)


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
    """The tests' own, with their callbacks to be found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(HELPERS), "OMP_NUM_THREADS": "1"}


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    """Start a command in a process group of its own, with its output in a file."""
    with log.open("w") as file:
        return subprocess.Popen(
            arguments, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(), start_new_session=True
        )


def finish(arguments: list[str], status: int = 0, ranks: int = 1) -> str:
    """Run a command and return what it printed; each of several ranks is started as torchrun would."""
    with tempfile.TemporaryDirectory() as folder:
        log, places = Path(folder, "log"), [{}]
        if ranks > 1:
            port = str(free_port())
            places = [{"LOCAL_RANK": str(rank), "MASTER_PORT": port} for rank in range(ranks)]
        processes = [SERVER.Process(target=_main, args=(arguments, place, log)) for place in places]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
            process.kill()
            process.join()
        text = log.read_text()
    assert [process.exitcode for process in processes] == [status] * ranks, text[-6000:]
    return text


def _main(arguments: list[str], place: dict[str, str], log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment() | place)
    os.chdir(ROOT)
    sys.path[:0] = HELPERS
    sys.argv = arguments
    torch.set_num_threads(1)
    runpy.run_path(arguments[0], run_name="__main__")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def rows(run: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What StepLog wrote: a row a batch."""
    path = run / f"steps-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
