"""VoxPopuli from a miniature copy, as its official scripts leave it, and spoilt."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse.recipes import prepare_voxpopuli
from miniature import VP_SPLITS, cut_short, make_voxpopuli, prepare, sentence, spoil_voxpopuli, vp_id

from data_prep import voxpopuli
from speechllm_pl.core.text import normalize


def test_splits_speakers_and_normalised_texts_are_the_official_ones(tmp_path):
    make_voxpopuli(tmp_path)
    prepared = prepare(voxpopuli, tmp_path, tmp_path / "out")
    assert prepared.quarantine() == {}
    for split, numbers in VP_SPLITS.items():
        assert prepared.ids(split) == [vp_id(number) for number in numbers]
        told = [cut.supervisions[0] for cut in prepared.cuts(split)]
        assert [s.text for s in told] == [sentence("pl", number) for number in numbers]
        assert [(s.speaker, s.gender) for s in told] == [(str(124_000 + n), ("female", "male")[n % 2]) for n in numbers]
        assert {s.language for s in told} == {"pl"}


def uncut(root: Path, folder: Path, output: Path) -> None:
    """The sessions as they were before the official script cut them, and its table, where Lhotse looks for them."""
    columns = ["session_id", "id_", "original_text", "normed_text", "speaker_id", "gender", "split"]
    columns += ["start_time", "end_time"]
    sessions: dict[str, list[np.ndarray]] = {}
    rows = []
    for split in VP_SPLITS:
        for row in csv.DictReader((folder / f"asr_{split}.tsv").open(), delimiter="\t", quoting=csv.QUOTE_NONE):
            session = row["id"].partition("-pl_")[0]
            samples, _ = soundfile.read(folder / "2017" / f"{row['id']}.ogg")
            start = sum(map(len, sessions.setdefault(session, []))) / 16_000
            sessions[session].append(samples)
            told = [session, row["id"], row["raw_text"], row["normalized_text"], row["speaker_id"], row["gender"]]
            rows.append([*told, row["split"], start, start + len(samples) / 16_000])
    (root / "raw_audios" / "pl" / "2017").mkdir(parents=True)
    for session, parts in sessions.items():
        path = root / "raw_audios" / "pl" / "2017" / f"{session}_original.ogg"
        soundfile.write(path, np.concatenate(parts), 16_000, format="OGG", subtype="VORBIS")
    output.mkdir()
    with gzip.open(output / "asr_pl.tsv.gz", "wt", newline="") as file:
        csv.writer(file, delimiter="|").writerows([columns, *rows])


def test_a_clean_corpus_is_what_lhotse_makes_of_the_uncut_sessions(tmp_path):
    folder = make_voxpopuli(tmp_path)
    uncut(tmp_path, folder, tmp_path / "theirs")
    theirs = prepare_voxpopuli(tmp_path, tmp_path / "theirs", lang="pl")
    ours = prepare(voxpopuli, tmp_path, tmp_path / "out")
    for split in VP_SPLITS:
        mine = {cut.supervisions[0].speaker: cut.supervisions[0] for cut in ours.cuts(split)}
        expected = {supervision.speaker: supervision for supervision in theirs[split]["supervisions"]}
        assert set(mine) == set(expected)
        for speaker, told in mine.items():
            their = expected[speaker]
            assert (told.text, told.gender) == (normalize(their.text, "pl"), their.gender)
            assert told.duration == pytest.approx(their.duration, abs=1e-6)


@pytest.mark.parametrize("check", ["decode", "header"])
def test_what_cannot_be_used_is_quarantined_with_its_reason_and_nothing_else_is(tmp_path, check):
    folder = make_voxpopuli(tmp_path)
    clean = prepare(voxpopuli, tmp_path, tmp_path / "clean", "--check", check)
    expected = spoil_voxpopuli(folder)
    spoilt = prepare(voxpopuli, tmp_path, tmp_path / "spoilt", "--check", check)
    assert spoilt.status == 0
    assert {name: reason.split(":")[0] for name, reason in spoilt.quarantine().items()} == expected
    assert spoilt.cuts("train")[:3] == clean.cuts("train")
    raw, quoted = (cut.supervisions[0] for cut in spoilt.cuts("train")[3:])
    assert (raw.text, raw.speaker) == (sentence("pl", 54), "unknown")  # the raw text, where the other is empty
    assert quoted.text == "panie"


def test_strict_stops_at_the_first_with_one_line_that_names_it(tmp_path):
    folder = make_voxpopuli(tmp_path)
    cut_short(folder / "2017" / f"{vp_id(1)}.ogg")
    strict = prepare(voxpopuli, tmp_path, tmp_path / "out", "--strict")
    assert strict.status == 1
    assert f"asr_train.tsv:3 {vp_id(1)}: truncated" in strict.error()


def test_portuguese_and_a_wrong_folder_are_told(tmp_path):
    assert "https://github.com/facebookresearch/voxpopuli" in prepare(voxpopuli, tmp_path, tmp_path / "o").error()
    make_voxpopuli(tmp_path)
    assert "no transcribed Portuguese" in prepare(voxpopuli, tmp_path, tmp_path / "o", "--languages", "pt").error()
    missing = prepare(voxpopuli, tmp_path, tmp_path / "o", "--languages", "en").error()
    assert "no VoxPopuli in the language en; there are: pl" in missing
    assert prepare(voxpopuli, tmp_path / "transcribed_data", tmp_path / "o").status == 0
