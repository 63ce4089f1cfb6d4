"""The whole experiments, held to the error rates that docs/results.md promises. Each takes many minutes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def averages(tmp_path: Path, target: str, folder: str) -> dict[str, float]:
    """Run a make target in a fresh copy of the project → each system's average WER."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    venv = os.environ.get("VIRTUAL_ENV", ROOT / ".venv")
    command = ["make", target, f"VENV={venv}", "-o", f"{venv}/installed"]
    done = subprocess.run(command, cwd=clone, check=False)
    assert done.returncode == 0
    scores = json.loads((clone / "runs" / folder / "scores.json").read_text())
    return {system: entry["average"]["wer"] for system, entry in scores.items()}


@pytest.mark.long
def test_the_demo_reaches_its_error_rates(tmp_path: Path) -> None:
    rates = averages(tmp_path, "demo", "demo")
    assert rates["ctc"] <= 0.06
    assert rates["llm"] <= 0.06


@pytest.mark.long
def test_spoken_digits_reach_their_error_rates(
    tmp_path: Path, speechllm_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHLLM_DATA", str(speechllm_data.resolve()))
    rates = averages(tmp_path, "fsdd", "fsdd")
    assert rates["ctc"] <= 0.02
    assert rates["llm"] <= 0.02
