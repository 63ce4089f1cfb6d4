import json
from pathlib import Path

import pytest
import torch
from command import ROOT, finish

SCRIPT = str(ROOT / "benchmarks" / "gpu_finetune.py")


def test_the_tiny_shape_runs_anywhere(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    tiny = ("--shape", "tiny", "--steps", "1", "--scale", "0.02", "--only", "fsdp|nf4", "--output", str(output))
    printed = finish([SCRIPT, *tiny])
    found = json.loads(output.read_text())
    assert len(found["training"]) == 3
    assert all(row["step_seconds"] > 0 and row["planned_gib"] > 0 for row in found["training"].values())
    assert all(rate > 0 for rate in found["decoding"].values())
    assert printed.count("| 80 s at 80 ms, ") == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_7b_shape_asks_for_a_gpu() -> None:
    assert "error: the 7B shape needs a CUDA device" in finish([SCRIPT], status=2)
