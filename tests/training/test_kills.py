"""A run that is killed at any moment, again and again, goes on as one that never was: bit for bit in fp32."""

import functools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import command, finish, rows, start

from speechllm_pl.storage.checkpoints import newest_complete, read_checkpoint

STEPS = {1: 16, 20: 160}  # of a run, by how often it is killed
SAVED_EVERY = 3  # steps
SETTINGS = [(trainer, workers) for trainer in ("cpu", "fsdp") for workers in (0, 2)]
STUBBORN = 60  # seconds that a job may live on when one of its ranks was killed
Whole = Callable[[str, int], Path]
"""Trainer and steps → the folder of a run that nobody killed."""


@pytest.fixture(scope="module")
def whole(small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Each run is made once, for any number of loader processes: it must change nothing."""

    @functools.cache
    def made(trainer: str, steps: int) -> Path:
        run = tmp_path_factory.mktemp(trainer) / "whole"
        finish(arguments(small_config, run, trainer, 0, steps), ranks=2)
        return run

    return made


def arguments(small_config: Path, run: Path, trainer: str, workers: int, steps: int) -> list[str]:
    return command(
        "pretrain_ctc",
        small_config,
        run,
        *("--trainer.max_steps", steps, "--trainer.max_epochs", 99, "--data.max_duration", 1.6),
        *(
            "--data.num_workers",
            workers,
            "--last_checkpoints.every_n_steps",
            SAVED_EVERY,
            "--model.encoder.dropout",
            0.1,
        ),
        *("--trainer.callbacks+=saboteurs.SlowDisk", "--trainer.callbacks.seconds", 0.05),
        trainer=trainer,
        devices=2,
    )


def told(run: Path, rank: int) -> dict[int, dict[str, Any]]:
    """A rank's row of each step; a step that was taken twice must have been the same both times."""
    steps: dict[int, dict[str, Any]] = {}
    for row in rows(run, rank):
        assert steps.setdefault(row["step"], row) == row
    return steps


def weights(run: Path, steps: int) -> dict[str, torch.Tensor]:
    path = newest_complete(run / "checkpoints")
    assert path is not None
    assert path.name.startswith(f"step={steps:08d}")
    return read_checkpoint(path)["state_dict"]


def kill_somewhere(given: list[str], run: Path, chance: random.Random) -> bool:
    """Start, and kill all ranks or one of them: after some steps, or when a checkpoint is half written.

    → whether the run was still under way.
    """
    process = start(given, run.with_suffix(".log"))
    begun, more = len(rows(run)), chance.randint(1, 7)
    while_writing = chance.random() < 0.4
    while process.poll() is None:
        writing = any((run / "checkpoints").glob(".*.partial"))
        if len(rows(run)) >= begun + more and (writing or not while_writing):
            break
        time.sleep(0.001)
    time.sleep(chance.random() * 0.02)
    if process.poll() is not None:
        assert process.returncode == 0, run.with_suffix(".log").read_text()[-3000:]
        return False
    others = descendants(process.pid)
    second = [child for child in others if "--run" in command_line(child)]
    victim = chance.choice(["all", "first", "second"])
    if victim == "all" or not second:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid if victim == "first" else second[0], signal.SIGKILL)
    process.wait(STUBBORN)
    deadline = time.monotonic() + STUBBORN
    while any(alive(pid) for pid in others):
        assert time.monotonic() < deadline, "a process outlived the one it works for"
        time.sleep(0.05)
    return True


def descendants(pid: int) -> list[int]:
    """The other rank, which the first has started, and what each has started for its data."""
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        found = [int(child) for child in listing.read_text().split()]
    except OSError:  # it has just ended
        return []
    return [process for child in found for process in (child, *descendants(child))]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().split()[2] != "Z"
    except OSError:
        return False


def check(small_config: Path, make_whole: Whole, folder: Path, trainer: str, workers: int, kills: int) -> None:
    killed, steps = folder / "killed", STEPS[kills]
    whole = make_whole(trainer, steps)
    chance = random.Random(f"{trainer} {workers} {kills}")
    given = arguments(small_config, killed, trainer, workers, steps)
    half_written = 0
    for _ in range(kills):
        assert kill_somewhere(given, killed, chance)
        half_written += any((killed / "checkpoints").glob(".*.partial"))
    assert half_written or kills == 1
    finish(given, ranks=2)
    for rank in (0, 1):
        expected, found = told(whole, rank), told(killed, rank)
        assert sorted(expected) == list(range(1, steps + 1))
        # The second rank may be killed after its part of a step, and before its row, when the first has saved the step.
        lost = {step for step in expected if step not in found and rank == 1 and step % SAVED_EVERY == 0}
        assert len(lost) <= kills
        assert found == {step: row for step, row in expected.items() if step not in lost}
    ours, theirs = weights(whole, steps), weights(killed, steps)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(("trainer", "workers"), SETTINGS)
def test_a_killed_run_resumes_exactly(
    small_config: Path, whole: Whole, tmp_path: Path, trainer: str, workers: int
) -> None:
    check(small_config, whole, tmp_path, trainer, workers, kills=1)


@pytest.mark.long
@pytest.mark.parametrize(("trainer", "workers"), SETTINGS)
def test_twenty_kills_change_nothing(
    small_config: Path, whole: Whole, tmp_path: Path, trainer: str, workers: int
) -> None:
    check(small_config, whole, tmp_path, trainer, workers, kills=20)
