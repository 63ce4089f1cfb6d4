"""The benchmark of cached frames runs for both stages, and finds the same losses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from random_encoders import SAVED

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 2])
def test_losses_with_and_without_the_cache_are_the_same(
    corpus: Path, tokenizer_file: Path, llm_folder: Path, stage: int, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl.gz").write_bytes((corpus / "train.jsonl.gz").read_bytes())
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    given = ["--data", tmp_path, "--encoder", SAVED["whisper"](tmp_path / "whisper")]
    llm = ["--llm", llm_folder] if stage == 2 else []
    command = [sys.executable, ROOT / "benchmarks" / "frame_cache_speed.py", *given, *llm, "--max-duration", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"^ratio [\d.]+; losses of batches differ by (\S+) at most$", done.stdout, flags=re.MULTILINE)
    assert found
    assert float(found[1]) < 1e-5
