"""What is claimed of speed and memory at full size."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_twelve_million_cuts_start_and_restore_in_time_and_memory(tmp_path: Path) -> None:
    """The program itself compares with the bars; `pytest -s` shows its figures."""
    if shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip(f"needs 8 GB in {tmp_path}: give --basetemp")
    program = [sys.executable, ROOT / "benchmarks" / "data_position.py", "--folder", tmp_path]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert "12,000,000 cuts" in done.stdout
    assert not list(tmp_path.iterdir())  # it cleans up


@pytest.mark.long
def test_one_rank_reads_an_llm_of_a_billion_parameters_for_all(tmp_path: Path) -> None:
    """The program compares the ranks' memory with the bar, and their shards with the file."""
    if shutil.disk_usage(tmp_path).free < 4e9:
        pytest.skip(f"needs 4 GB in {tmp_path}: give --basetemp")
    program = [sys.executable, ROOT / "benchmarks" / "sharded_loading.py", "--folder", tmp_path]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert "1.24 billion parameters" in done.stdout
