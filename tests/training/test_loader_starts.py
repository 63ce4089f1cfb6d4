"""Loader processes begin whatever the threads of the process that starts them do."""

import subprocess
import sys
from pathlib import Path

import pytest
from command import environment

SCRIPT = Path(__file__).with_name("loader_starts.py")


def start_and_read(corpus: Path, folder: Path, starts: int, seconds: float) -> list[str]:
    """Two ranks with live threads of gloo and autograd → what each says in the end."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(folder / "rendezvous"), str(corpus), str(starts)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for rank in (0, 1)
    ]
    try:
        return [rank.communicate(timeout=seconds)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def test_processes_start_beside_live_threads(corpus: Path, tmp_path: Path) -> None:
    assert all(said.startswith("10 starts;") for said in start_and_read(corpus, tmp_path, 10, seconds=180))


@pytest.mark.long
def test_five_hundred_starts_beside_live_threads(corpus: Path, tmp_path: Path) -> None:
    said = start_and_read(corpus, tmp_path, 500, seconds=3600)
    assert all(rank.startswith("500 starts;") for rank in said)
    print(*said)
