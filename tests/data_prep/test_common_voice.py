"""Common Voice from a miniature copy: every shape of its tables, Lhotse's recipe beside ours, and spoilt clips."""

from pathlib import Path

import pytest
from lhotse.recipes import prepare_commonvoice
from miniature import (
    CV_COLUMNS,
    CV_NORMALIZED,
    CV_RELEASE,
    CV_SPLITS,
    append,
    cut_short,
    cv_clip,
    cv_row,
    make_common_voice,
    prepare,
    spoil_common_voice,
)

from data_prep import common_voice
from speechllm_pl.core.text import normalize


@pytest.mark.parametrize("release", CV_COLUMNS)
def test_columns_are_found_by_name_in_every_release(tmp_path, release):
    make_common_voice(tmp_path, release)
    prepared = prepare(common_voice, tmp_path, tmp_path / "out")
    assert prepared.quarantine() == {}
    for split in ("train", "dev", "test"):
        cuts = prepared.cuts(split)
        assert [cut.id for cut in cuts] == [f"common_voice_pl_{20547774 + number}" for number in CV_SPLITS[split]]
        told = [cut.supervisions[0] for cut in cuts]
        assert [s.text for s in told] == [CV_NORMALIZED[number] for number in CV_SPLITS[split]]
        assert [s.speaker for s in told] == [f"{number // 2:0128x}" for number in CV_SPLITS[split]]
        assert [s.gender for s in told] == [("female", "male", None, None)[n // 2 % 4] for n in CV_SPLITS[split]]
        assert {s.language for s in told} == {"pl"}
        assert all(cut.load_audio().shape == (1, cut.num_samples) and cut.sampling_rate == 16_000 for cut in cuts)


def test_a_clean_release_is_what_lhotse_makes_of_it(tmp_path):
    make_common_voice(tmp_path)
    root = tmp_path / CV_RELEASE
    theirs = prepare_commonvoice(root, tmp_path / "theirs", languages="pl", splits=["train"])["pl"]["train"]
    ours = prepare(common_voice, root, tmp_path / "out").cuts("train")
    assert [cut.id for cut in ours] == [supervision.id for supervision in theirs["supervisions"]]
    for cut, their in zip(ours, theirs["supervisions"], strict=True):
        (told,) = cut.supervisions
        assert (told.text, told.speaker, told.language) == (
            normalize(their.text, "pl"),
            their.speaker,
            their.language,
        )
        assert cut.duration == pytest.approx(their.duration, abs=1e-4)
        recording = theirs["recordings"][cut.id].resample(16_000)
        assert cut.load_audio() == pytest.approx(recording.load_audio(), abs=1e-6)


@pytest.mark.parametrize("check", ["decode", "header"])
def test_what_cannot_be_used_is_quarantined_with_its_reason_and_nothing_else_is(tmp_path, check):
    folder = make_common_voice(tmp_path)
    clean = prepare(common_voice, folder, tmp_path / "clean", "--check", check)
    expected = spoil_common_voice(folder)
    spoilt = prepare(common_voice, folder, tmp_path / "spoilt", "--check", check)
    assert spoilt.status == 0
    assert {name: reason.split(":")[0] for name, reason in spoilt.quarantine().items()} == expected
    assert spoilt.cuts("train")[:4] == clean.cuts("train")
    assert [cut.supervisions[0].text for cut in spoilt.cuts("train")[4:]] == ["jak to możliwe"]
    assert spoilt.cuts("dev") == clean.cuts("dev")


def test_strict_stops_at_the_first_with_one_line_that_names_it(tmp_path):
    folder = make_common_voice(tmp_path)
    cut_short(cv_clip(folder, 3))
    strict = prepare(common_voice, folder, tmp_path / "out", "--strict")
    assert strict.status == 1
    assert "train.tsv:5 common_voice_pl_20547777: truncated" in strict.error()


def test_what_is_not_validated_is_in_no_split(tmp_path):
    folder = make_common_voice(tmp_path)
    prepared = prepare(common_voice, folder, tmp_path / "out", "--train", "validated")
    assert cv_clip(folder, 8).stem not in prepared.by_id()


def test_validated_clips_become_train_without_the_speakers_and_sentences_of_dev_and_test(tmp_path):
    folder = make_common_voice(tmp_path)
    columns = CV_COLUMNS[CV_RELEASE]
    cv_clip(folder, 300).write_bytes(cv_clip(folder, 0).read_bytes())
    append(folder / "test.tsv", cv_row(columns, 300, client_id="another", sentence="Ala ma kota."))
    rows = {
        200: {"client_id": "new", "sentence": "Nowe zdanie."},
        201: {"client_id": f"{4 // 2:0128x}", "sentence": "Głos z dev."},
        202: {"client_id": "new", "sentence": "Las"},  # a sentence of test
        203: {"client_id": "new", "sentence": "Ala ma kota"},  # of test, but for the stop
    }
    for number, cells in rows.items():
        cv_clip(folder, number).write_bytes(cv_clip(folder, 0).read_bytes())
        append(folder / "validated.tsv", cv_row(columns, number, **cells))
    plain = prepare(common_voice, folder, tmp_path / "plain")
    prepared = prepare(common_voice, folder, tmp_path / "out", "--train", "validated")
    assert prepared.ids("train") == [*plain.ids("train"), cv_clip(folder, 200).stem]
    assert (prepared.cuts("dev"), prepared.cuts("test")) == (plain.cuts("dev"), plain.cuts("test"))
    assert "pl: 7 clips of validated.tsv left out" in prepared.out  # dev's and test's own four, and three more


def test_a_release_a_folder_around_it_and_a_language_are_found(tmp_path):
    folder = make_common_voice(tmp_path)
    kept = [prepare(common_voice, path, tmp_path / "o").by_id() for path in (tmp_path, folder.parent, folder)]
    assert len(kept[0]) == 8
    assert kept[0] == kept[1] == kept[2]


def test_a_wrong_folder_two_releases_a_missing_language_and_a_missing_column_are_told(tmp_path):
    assert "https://commonvoice.mozilla.org" in prepare(common_voice, tmp_path, tmp_path / "o").error()
    folder = make_common_voice(tmp_path)
    missing = prepare(common_voice, tmp_path, tmp_path / "o", "--languages", "de").error()
    assert "no Common Voice in the language de; there are: pl" in missing
    make_common_voice(tmp_path, "cv-corpus-7.0-2021-07-21")
    assert "several releases" in prepare(common_voice, tmp_path, tmp_path / "o").error()
    table = folder / "dev.tsv"
    table.write_text(table.read_text().replace("client_id", "speaker"))
    assert f"{table} has no column client_id" in prepare(common_voice, folder, tmp_path / "o").error()


def test_several_processes_leave_the_same_bytes(tmp_path):
    folder = make_common_voice(tmp_path)
    spoil_common_voice(folder)
    one, two = (prepare(common_voice, folder, tmp_path / f"out{jobs}", "--jobs", jobs) for jobs in (1, 2))
    assert one.files() == two.files()


def test_paths_in_the_manifest_are_those_of_the_clips(tmp_path):
    folder = make_common_voice(tmp_path)
    (source,) = prepare(common_voice, folder, tmp_path / "out").cuts("test")[0].recording.sources
    assert Path(source.source) == cv_clip(folder, 6)
