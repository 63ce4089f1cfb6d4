"""`evaluate --long_form` and `--guard`: recordings are divided, and texts doubted, as `transcribe` does."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE
from lhotse import CutSet, Recording, SupervisionSegment

from speechllm_pl.apps.long_form import FALLBACK, UNSURE, recognize_recordings
from speechllm_pl.apps.recognized_cuts import Recognized
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.recognizer import Recognizer

SECONDS = (1.5, 40.0, 2.0, 2.5)
"""One is longer than a piece."""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four recordings of noise that swells like syllables, and a manifest of them and of a lost one."""
    folder, cuts = tmp_path_factory.mktemp("recordings"), []
    for number, seconds in enumerate(SECONDS):
        time = np.arange(round(seconds * RATE)) / RATE
        noise = np.random.default_rng(number).standard_normal(len(time))
        soundfile.write(folder / f"{number}.wav", 0.1 * noise * np.sin(2 * np.pi * 2 * time) ** 4, RATE)
        cuts.append(
            Recording.from_file(folder / f"{number}.wav", recording_id=str(number)).to_cut().with_id(str(number))
        )
    soundfile.write(folder / "gone.wav", np.ones(RATE), RATE)
    cuts.insert(1, Recording.from_file(folder / "gone.wav", recording_id="gone").to_cut().with_id("gone"))
    (folder / "gone.wav").unlink()
    for number, cut in enumerate(cuts):
        language = ("en", "de")[number % 2]
        cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, cut.duration, text="one two", language=language)]
    CutSet.from_cuts(cuts).to_file(folder / "test.jsonl.gz")
    return folder


@pytest.mark.parametrize("guarded", [False, True])
def test_evaluating_divides_and_doubts_as_transcribing_does(
    speechllm, untrained_llm: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    sure = "speechllm_pl.recognition.guarded_search.confidences"  # an untrained CTC head is not: all would be silence
    monkeypatch.setattr(sure, lambda logits, frames: torch.ones(len(frames)))
    files = [recordings / f"{number}.wav" for number in range(len(SECONDS))]
    given = ("--checkpoint", untrained_llm)
    done = speechllm("transcribe", *given, "--guard", str(guarded).lower(), "--format", "json", *files)
    assert done.status == 0, done.err
    transcribed = [json.loads(line) for line in done.out.splitlines()]
    pieces = [piece for each in transcribed for piece in each["pieces"]]
    assert len(pieces) > len(files)

    cuts = ("--cuts", recordings / "test.jsonl.gz", "--output", tmp_path)
    done = speechllm("evaluate", *given, *cuts, "--guard" if guarded else "--long_form", "true")
    assert done.status == 0, done.err
    assert "1 recordings could not be read: gone" in done.err
    rows = [json.loads(line) for line in (tmp_path / "hypotheses.jsonl").read_text().splitlines()]
    assert [row["hypothesis"] for row in rows if row["system"] == "llm"] == [each["text"] for each in transcribed]
    assert any(row["hypothesis"] for row in rows if row["system"] == "llm")
    entry = json.loads((tmp_path / "scores.json").read_text())["llm"]
    origins = Counter(
        FALLBACK if piece["decoded_by"] == "ctc" and piece["remark"] else piece["decoded_by"] for piece in pieces
    )
    assert entry["decoded_by"] == origins
    assert (FALLBACK in origins) == guarded  # an untrained LLM writes nothing that was heard
    assert entry["unreadable"] == ["gone"]
    assert f"llm, against CTC: {100 * entry['against_ctc']['wer_change']:+.2f} %" in done.out


def test_the_guard_leaves_the_ctc_head_that_the_llm_is_compared_with_as_it_is(
    untrained_llm: Path, recordings: Path
) -> None:
    recognizer, cuts = Recognizer.load(untrained_llm), read_cuts(recordings / "test.jsonl.gz")
    options = DecodingOptions(max_new_tokens=3)
    plain, guarded = (
        recognize_recordings(recognizer, cuts, 60.0, options=options, guard=guard) for guard in (False, True)
    )
    heard = [each.text for each in plain.hypotheses("ctc")]
    assert [each.text for each in guarded.hypotheses("ctc")] == heard
    # An untrained CTC head is unsure of all that it hears: the guard takes nothing from it, and says so.
    assert any(heard)
    assert {each.text for each in guarded.hypotheses("llm")} == {""}
    assert UNSURE in guarded.decoded_by
    assert guarded.decoded_by.keys() <= {UNSURE, "silence"}


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_divide_recordings_together_as_one_does(untrained_llm: Path, recordings: Path, world_size: int) -> None:
    recognizer, cuts = Recognizer.load(untrained_llm), read_cuts(recordings / "test.jsonl.gz")
    options = DecodingOptions(max_new_tokens=3)
    alone = recognize_recordings(recognizer, cuts, 60.0, options=options)
    ranks = range(world_size)
    parts = [
        recognize_recordings(recognizer, cuts, 60.0, options=options, rank=r, world_size=world_size) for r in ranks
    ]
    together = Recognized.of_ranks(parts)
    for system in ("ctc", "llm"):
        texts = [dict(zip(each.ids, each.hypotheses(system), strict=True)) for each in (alone, together)]
        assert texts[0] == texts[1]
    assert (together.skipped, together.decoded_by, together.acceptance) == (
        ["gone"],
        alone.decoded_by,
        alone.acceptance,
    )
    assert alone.audio_seconds == pytest.approx(sum(SECONDS)) == together.audio_seconds


def test_a_checkpoint_of_stage_1_is_divided_too(
    speechllm, untrained_ctc: Path, recordings: Path, tmp_path: Path
) -> None:
    cuts = ("--cuts", recordings / "test.jsonl.gz", "--output", tmp_path)
    assert speechllm("evaluate", "--checkpoint", untrained_ctc, *cuts, "--long_form", "true").status == 0
    assert list(json.loads((tmp_path / "scores.json").read_text())) == ["ctc"]


def test_processes_that_read_ahead_have_no_effect_and_are_refused(speechllm, tmp_path: Path) -> None:
    given = ("evaluate", "--checkpoint", "x", "--cuts", tmp_path / "x.jsonl", "--num_workers", 1)
    for option in ("--long_form", "--guard"):
        assert "num_workers has no effect" in speechllm(*given, option, "true").error()
