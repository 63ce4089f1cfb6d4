"""What is claimed of speed and memory at full size."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shown(program: str, folder: Path, free: float) -> str:
    """Return what a benchmark printed, which itself compares with its bars; `pytest -s` shows it too."""
    if shutil.disk_usage(folder).free < free:
        pytest.skip(f"needs {free / 1e9:.0f} GB in {folder}: give --basetemp")
    command = [sys.executable, ROOT / "benchmarks" / program, "--folder", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.long
def test_twelve_million_cuts_start_and_restore_in_time_and_memory(tmp_path: Path) -> None:
    assert "12,000,000 cuts" in shown("data_position.py", tmp_path, free=8e9)
    assert not list(tmp_path.iterdir())  # it cleans up


@pytest.mark.long
def test_one_rank_reads_an_llm_of_a_billion_parameters_for_all(tmp_path: Path) -> None:
    assert "1.24 billion parameters" in shown("sharded_loading.py", tmp_path, free=4e9)
