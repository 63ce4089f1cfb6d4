import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_finetune.py"


def run(*arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_tiny_shape_runs_anywhere(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    done = run("--shape", "tiny", "--steps", 1, "--scale", 0.02, "--only", "fsdp|nf4", "--output", output)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert len(found["training"]) == 3
    assert all(row["step_seconds"] > 0 and row["planned_gib"] > 0 for row in found["training"].values())
    assert all(rate > 0 for rate in found["decoding"].values())
    assert done.stdout.count("| 80 s at 80 ms, ") == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_7b_shape_asks_for_a_gpu() -> None:
    done = run()
    assert done.returncode == 2
    assert "error: the 7B shape needs a CUDA device" in done.stderr
