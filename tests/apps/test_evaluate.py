"""`speechllm evaluate`: recordings that cannot be read, gates, and the table that is printed."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE
from lhotse import CutSet, Recording, SupervisionSegment

from speechllm_pl.apps.score_table import score_table
from speechllm_pl.core.metrics import score, table


def cut_ogg(path: Path, subtype: str = "VORBIS") -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * RATE)  # several pages
    soundfile.write(path, noise, RATE, format="OGG", subtype=subtype)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])


def test_two_checkpoints_of_one_stage_are_not_compared(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path
) -> None:
    both, cuts = f"[{untrained_ctc},{untrained_ctc}]", corpus / "test.jsonl.gz"
    line = speechllm("evaluate", "--checkpoint", both, "--cuts", cuts, "--output", tmp_path).error()
    assert "second checkpoint of its stage" in line


def test_evaluating_names_recordings_that_are_gone(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path
) -> None:
    cuts = list(CutSet.from_file(corpus / "test.jsonl.gz"))
    for cut in cuts[:1]:
        cut.recording.sources[0].source = str(tmp_path / "gone.wav")
    some, none = tmp_path / "some.jsonl.gz", tmp_path / "none.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(some)
    CutSet.from_cuts(cuts[:1]).to_file(none)
    done = speechllm("evaluate", "--checkpoint", untrained_ctc, "--cuts", some, "--output", tmp_path)
    assert done.status == 0
    assert f"1 recordings could not be read: {cuts[0].id}" in done.err
    assert json.loads((tmp_path / "scores.json").read_text())["ctc"]["unreadable"] == [cuts[0].id]
    line = speechllm("evaluate", "--checkpoint", untrained_ctc, "--cuts", none, "--output", tmp_path).error()
    assert "none of the recordings could be read: check the paths" in line


def test_evaluating_names_recordings_that_were_cut_off(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.ogg"
    cut_ogg(path)
    bad = Recording.from_file(path, recording_id="cut").to_cut().with_id("cut")
    bad.supervisions = [SupervisionSegment("cut", "cut", 0, bad.duration, text="one", language="en")]
    cuts = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts([*CutSet.from_file(corpus / "test.jsonl.gz"), bad]).to_file(cuts)
    done = speechllm("evaluate", "--checkpoint", untrained_ctc, "--cuts", cuts, "--output", tmp_path)
    assert "1 recordings could not be read: cut" in done.err
    assert json.loads((tmp_path / "scores.json").read_text())["ctc"]["unreadable"] == ["cut"]


def test_evaluating_runs_no_command_unless_it_is_told_to(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path
) -> None:
    first, *others = gzip.decompress((corpus / "test.jsonl.gz").read_bytes()).decode().splitlines()
    cut, trace = json.loads(first), tmp_path / "trace"
    source = cut["recording"]["sources"][0]
    source |= {"type": "command", "source": f"echo run >> {trace}; cat '{source['source']}'"}
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([json.dumps(cut), *others]) + "\n")
    given = ["evaluate", "--checkpoint", untrained_ctc, "--cuts", path, "--output", tmp_path / "scores"]
    assert f"{path}, line 1: audio from a source of type 'command'" in speechllm(*given).error()
    assert not trace.exists()
    done = speechllm(*given, "--allow-command-sources")
    assert done.status == 0, done.err
    assert "run" in trace.read_text()
    assert "could not be read" not in done.err


def test_a_gate_on_the_error_rate_fails_on_unread_recordings(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path
) -> None:
    """Or a corpus that has gone missing would pass it."""
    cuts = list(CutSet.from_file(corpus / "test.jsonl.gz"))
    cuts[0].recording.sources[0].source = str(tmp_path / "gone.wav")
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    given = ["evaluate", "--checkpoint", untrained_ctc, "--cuts", tmp_path / "cuts.jsonl.gz", "--output", tmp_path]
    done = speechllm(*given, "--max_wer", 9)
    assert f"1 of 2 recordings (50.0 %) could not be read, such as {cuts[0].id}" in done.error()
    assert "--max_unread" in done.error()
    assert "; 1 of 2 recordings (50.0 %) not read" in done.out  # the table's
    assert speechllm(*given, "--max_wer", 9, "--max_unread", 0.5).status == 0
    assert speechllm(*given, "--max_wer", 9, "--max_unread", 0.49).status == 2
    assert speechllm(*given).status == 0
    told = speechllm(*given, "--max_wer", 0.01, "--max_unread", 0.5).error()
    assert told.endswith(" is above max_wer 0.01: alignments-ctc.txt lists its errors")
    assert "--max_unread 1.5" in speechllm(*given, "--max_wer", 9, "--max_unread", 1.5).error()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--device", "cuda:0", "--devices", 2], "2 processes cannot share device cuda:0: give --device cuda"),
        (["--device", "abacus", "--devices", 2], "2 processes cannot share device abacus"),
        (["--device", "cuda", "--devices", 2], "2 processes need a GPU each, but there are 0: lower --devices"),
        (["--devices", 0], "devices 0: give 1 or more, or auto"),
        (["--devices", "all"], "devices"),
        (["--precision", "fp8"], "bf16-mixed"),
        (["--num_workers", -1], "num_workers -1: give 0 or more, or auto"),
    ],
)
def test_what_cannot_be_shared_or_computed_is_told(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path, given: list, named: str
) -> None:
    cuts = corpus / "test.jsonl.gz"
    line = speechllm("evaluate", "--checkpoint", untrained_ctc, "--cuts", cuts, "--output", tmp_path, *given).error()
    assert named in line
    assert not list(tmp_path.iterdir())


def test_the_table_has_rates_of_all_systems_side_by_side_and_what_they_count() -> None:
    references, heard = (
        ["one two three four", "five six"],
        {"ctc": ["one two four", "five six"], "llm": ["one", "five"]},
    )
    scores = {}
    for system, texts in heard.items():
        utterances = score(["a", "b"], ["de", "en"], references, texts)
        scores[system] = {**table(utterances), "truncated": 3, "unreadable": ["c"], "real_time_factor": None}
    scores["llm"] |= {
        "real_time_factor": 0.25,
        "rtfx": 4.5,
        "devices": 2,
        "device": "cpu",
        "precision": "32-true",
        "llm_passes": 7.25,
        "decoder": "beam",
        "ctc_weight": 0.3,
        "ctc_candidates": 16,
    }
    head, _, german, english, average, ctc, llm, *_ = score_table(scores).splitlines()
    assert ("ctc WER %" in head, "llm WER %" in head) == (True, True)
    assert [line.split()[2] for line in (german, english, average)] == ["25.00", "0.00", "12.50"]
    assert [line.split("|")[2].split()[0] for line in (german, english, average)] == ["75.00", "50.00", "62.50"]
    assert ctc == (
        "ctc: 0 substitutions, 1 deletions, 0 insertions in 6 words of 2 utterances; 3 truncated"
        "; 1 of 3 recordings (33.3 %) not read"
    )
    how = "beam, CTC weight 0.3, with 16 texts of CTC, 7.2 passes of the LLM an utterance"
    assert llm.endswith(f"; real-time factor 0.250, RTFx 4.5 (2 x cpu, 32-true); {how}")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(
    speechllm, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    given = ("evaluate", "--checkpoint", tmp_path / "missing.ckpt", "--cuts", corpus / "test.jsonl.gz")
    for output in ("file", "file/below"):
        line = speechllm(*given, "--output", tmp_path / output).error()
        assert f"cannot be written into folder {tmp_path / output} ({tmp_path / 'file'} is a file)" in line
        assert line.endswith(": give another --output")


def test_an_evaluation_that_is_ended_while_it_writes_leaves_the_results_before(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("evaluate", "--checkpoint", untrained_ctc, "--cuts", corpus / "test.jsonl.gz", "--output", tmp_path)
    assert speechllm(*given).status == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["alignments-ctc.txt", "hypotheses.jsonl", "manifest.jsonl", "scores.json"]

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        speechllm(*given)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
