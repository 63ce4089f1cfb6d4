"""The whole experiments, held to the error rates that docs/results.md promises. Each takes many minutes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_of(tmp_path: Path, target: str, folder: str, *variables: str) -> Path:
    """Run a make target in a fresh copy of the project → its run folder."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    venv = os.environ.get("VIRTUAL_ENV", ROOT / ".venv")
    command = ["make", target, f"VENV={venv}", "-o", f"{venv}/installed", "-o", f"{venv}/smollm2", *variables]
    done = subprocess.run(command, cwd=clone, check=False)
    assert done.returncode == 0
    return clone / "runs" / folder


def wers(scores: Path) -> dict[str, float]:
    """Each system's average WER."""
    return {system: entry["average"]["wer"] for system, entry in json.loads(scores.read_text()).items()}


def averages(tmp_path: Path, target: str, folder: str) -> dict[str, float]:
    return wers(run_of(tmp_path, target, folder) / "scores.json")


@pytest.mark.long
def test_the_demo_reaches_its_error_rates(tmp_path: Path) -> None:
    rates = averages(tmp_path, "demo", "demo")
    assert rates["ctc"] <= 0.076
    assert rates["llm"] <= 0.05


@pytest.mark.long
def test_spoken_digits_reach_their_error_rates(
    tmp_path: Path, speechllm_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHLLM_DATA", str(speechllm_data.resolve()))
    rates = averages(tmp_path, "fsdd", "fsdd")
    assert rates["ctc"] <= 0.02
    assert rates["llm"] <= 0.02


@pytest.mark.long
def test_smollm2_with_lora_and_ctc_together_is_not_above_ctc(
    tmp_path: Path, speechllm_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="needs the extra smollm2")
    monkeypatch.setenv("SPEECHLLM_DATA", str(speechllm_data.resolve()))
    scores = run_of(tmp_path, "demo-english", "demo_english") / "scores"
    for corpus in ("spoken_numbers", "fsdd"):
        ctc, lora = (wers(scores / corpus / system / "scores.json") for system in ("ctc", "lora_r8-joint"))
        assert lora["llm"] <= ctc["ctc"] <= 0.08


@pytest.mark.long
def test_whispers_encoder_and_smollm2_learn_real_sentences_and_ctc_keeps_the_llm_from_inventing_others(
    tmp_path: Path, speechllm_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="needs the extra smollm2")
    models = Path(os.environ.get("SPEECHLLM_MODELS", ROOT.parent / "shared" / "models")).resolve()
    if not (models / "whisper-tiny-en").is_dir():
        pytest.skip(
            f"needs Whisper's weights: name the folder that has whisper-tiny-en (not {models}) in SPEECHLLM_MODELS"
        )
    monkeypatch.setenv("SPEECHLLM_DATA", str(speechllm_data.resolve()))
    monkeypatch.setenv("SPEECHLLM_MODELS", str(models))
    others = speechllm_data.resolve() / "long-form"
    scores = run_of(tmp_path, "demo-speech", "demo_speech", f"EVAL_TABLE={others}") / "scores"
    (long_form,) = scores.glob("long-form-*")
    assert wers(scores / "dev" / "ctc" / "scores.json")["ctc"] <= 0.43
    for system in ("llm-joint", "llm-guarded"):
        entry = json.loads((scores / "dev" / system / "scores.json").read_text())["llm"]
        assert entry["average"]["wer"] <= 0.28
        assert entry["against_ctc"]["confidence_interval"][1] < 0
    rates = wers(long_form / "llm-guarded" / "scores.json")
    assert rates["llm"] <= rates["ctc"]
    rows = [json.loads(line) for line in (long_form / "llm-guarded" / "hypotheses.jsonl").read_text().splitlines()]
    for row in rows:  # nothing of two and a half minutes is left out
        assert len(row["hypothesis"].split()) > 0.7 * len(row["reference"].split())
