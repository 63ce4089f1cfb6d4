"""MLS from a miniature copy: compared with Lhotse's own recipe where that works, and spoilt where it does not."""

import shutil
import unicodedata
from pathlib import Path

import pytest
from lhotse.recipes import prepare_mls
from miniature import (
    MLS_NAMES,
    SENTENCES,
    cut_short,
    make_mls,
    make_mls_language,
    mls_audio,
    mls_id,
    prepare,
    spoil_mls,
)

from data_prep import mls


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mls(tmp_path_factory.mktemp("mls"))


def test_every_language_has_its_official_splits_speakers_and_texts(corpus, tmp_path):
    prepared = prepare(mls, corpus, tmp_path / "out")
    assert prepared.status == 0
    assert set(prepared.files()) == {"train.jsonl.gz", "dev.jsonl.gz", "test.jsonl.gz", "quarantine.tsv"}
    expected = {"train": (10, "1001", "female"), "dev": (2, "1002", "male"), "test": (1, "1003", "female")}
    for split, (count, speaker, gender) in expected.items():
        told = [cut.supervisions[0] for cut in prepared.cuts(split)]
        assert [supervision.language for supervision in told] == [code for code in MLS_NAMES for _ in range(count)]
        assert {(supervision.speaker, supervision.gender) for supervision in told} == {(speaker, gender)}
        assert [s.text for s in told if s.language == "pl"] == [SENTENCES["pl"][n % 3] for n in range(count)]
    assert prepared.quarantine() == {}


@pytest.mark.parametrize("suffix", [".flac", ".opus"])
def test_a_clean_corpus_is_what_lhotse_makes_of_it(tmp_path, suffix):
    make_mls_language(tmp_path / "mls", "fr", suffix)
    theirs = prepare_mls(tmp_path / "mls", opus=suffix == ".opus")["french"]
    ours = prepare(mls, tmp_path / "mls", tmp_path / "out")
    for split in ("train", "dev", "test"):
        expected = {cut.id: cut for cut in theirs[split]["supervisions"]}
        assert sorted(ours.ids(split)) == sorted(expected)
        for cut in ours.cuts(split):
            (told,), their = cut.supervisions, expected[cut.id]
            assert (told.text, told.speaker) == (their.text, their.speaker)
            assert told.gender == {"F": "female", "M": "male"}[their.gender]
            assert cut.duration == pytest.approx(their.duration, abs=1e-6)
            recording = theirs[split]["recordings"][cut.id]
            assert Path(cut.recording.sources[0].source) == Path(recording.sources[0].source)
            assert (cut.load_audio() == recording.load_audio()).all()


PUBLISHED = {
    "en": "'tis the boys' an' the ol' man o' the well-nigh forgotten mill said he",
    "de": "'s ist nich' wahr rief hans' mutter 'ne e-mail hab' ich 'nauf getragen",
    "nl": "'s avonds at 't kind z'n foto's op en d' oude zee-man zong",
    "fr": "peut-être qu'aujourd'hui l'œuvre s'achève dit-il jusqu' à",
    "es": "o'donnell y d'artagnan vinieron el vis-à-vis 1812",
    "it": "ne' campi de' fiori e' disse un po' a' suoi co' piè perche' 'l mondo",
    "pt": "disse-me qu' a d'água guarda-chuva põe-no n'aquella",
    "pl": "harry'ego i biało-czerwony sztandar ks' 3 ej",
}
"""Of each language what `normalize` would change: words with apostrophes at either edge, hyphens, digits."""


@pytest.mark.parametrize("language", PUBLISHED)
def test_transcripts_stay_as_published_in_all_splits(tmp_path, language):
    folder = make_mls_language(tmp_path, language)
    published, spelt = PUBLISHED[language], unicodedata.normalize("NFD", PUBLISHED[language])
    for split in ("train", "dev", "test"):
        (folder / split / "transcripts.txt").write_text(f"{mls_id(language, 0, split)}\t{spelt}\n")
    prepared = prepare(mls, folder, tmp_path / "out")
    for split in ("train", "dev", "test"):
        assert [cut.supervisions[0].text for cut in prepared.cuts(split)] == [published]


def test_characters_outside_the_alphabet_are_kept_and_told(tmp_path):
    folder = make_mls_language(tmp_path, "pl")
    (folder / "test" / "transcripts.txt").write_text(f"{mls_id('pl', 0, 'test')}\tžluťoučký kůň, ž\n")
    prepared = prepare(mls, folder, tmp_path / "out")
    assert prepared.cuts("test")[0].supervisions[0].text == "žluťoučký kůň, ž"
    assert f"  pl  'ž' U+017E      2  for example in {mls_id('pl', 0, 'test')}" in prepared.out


@pytest.mark.parametrize("suffix", [".flac", ".opus"])
@pytest.mark.parametrize("check", ["decode", "header"])
def test_what_cannot_be_used_is_quarantined_with_its_reason_and_nothing_else_is(tmp_path, suffix, check):
    folder = make_mls_language(tmp_path / "mls", "pl", suffix)
    clean = prepare(mls, folder, tmp_path / "clean", "--check", check)
    expected = spoil_mls(folder, "pl", suffix)
    spoilt = prepare(mls, folder, tmp_path / "spoilt", "--check", check)
    assert spoilt.status == 0
    assert {name: reason.split(":")[0] for name, reason in spoilt.quarantine().items()} == expected
    assert spoilt.ids("train") == [*clean.ids("train"), mls_id("pl", 907)]
    assert spoilt.cuts("train")[:10] == clean.cuts("train")
    assert spoilt.cuts("train")[-1].supervisions[0].text == f'„{SENTENCES["pl"][0]}” "{SENTENCES["pl"][1]}'
    assert spoilt.cuts("dev") == clean.cuts("dev")
    assert f"rejected: {len(expected)}" in spoilt.out


def test_several_processes_leave_the_same_bytes(tmp_path):
    folder = make_mls_language(tmp_path, "es")
    spoil_mls(folder, "es", ".flac")
    one, two = (prepare(mls, folder, tmp_path / f"out{jobs}", "--jobs", jobs) for jobs in (1, 2))
    assert one.files() == two.files()


def test_strict_stops_at_the_first_with_one_line_that_names_it(tmp_path):
    folder = make_mls_language(tmp_path, "it")
    cut_short(mls_audio(folder, "train", mls_id("it", 4), ".flac"))
    mls_audio(folder, "train", mls_id("it", 7), ".flac").unlink()
    strict = prepare(mls, folder, tmp_path / "out", "--strict")
    assert strict.status == 1
    assert f"train/transcripts.txt:5 {mls_id('it', 4)}: unreadable" in strict.error()
    assert not list((tmp_path / "out").glob("*.*"))
    (folder / "train" / "transcripts.txt").write_text(f"{mls_id('it', 0)}\tuno\nnonsense\n")
    assert "train/transcripts.txt:2: broken line" in prepare(mls, folder, tmp_path / "out", "--strict").error()


# which languages and subsets


def test_languages_are_chosen_and_a_missing_one_is_named(corpus, tmp_path):
    prepared = prepare(mls, corpus, tmp_path / "out", "--languages", "de", "pt")
    assert {cut.supervisions[0].language for cut in prepared.by_id().values()} == {"de", "pt"}
    opus = {Path(c.recording.sources[0].source).suffix for c in prepared.cuts("test")}
    assert opus == {".opus", ".flac"}
    made = make_mls_language(tmp_path, "nl")
    missing = prepare(mls, made, tmp_path / "missing", "--languages", "pl")
    assert missing.status == 2
    assert "no MLS in the language pl; there are: nl" in missing.error()


def test_flac_is_read_where_there_is_opus_too_unless_that_is_named(tmp_path):
    make_mls_language(tmp_path, "nl")
    opus = make_mls_language(tmp_path, "nl", ".opus")
    for number, (folder, suffix) in enumerate(((tmp_path, ".flac"), (opus, ".opus"))):
        prepared = prepare(mls, folder, tmp_path / f"out{number}")
        assert {Path(cut.recording.sources[0].source).suffix for cut in prepared.cuts("train")} == {suffix}


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--limited", "9h"], {6, 7}),
        (["--limited", "1h"], {0, 1, 2, 3, 4, 5}),
        (["--limited", "10h"], {0, 1, 2, 3, 4, 5, 6, 7}),
        (["--limited", "10min"], {0}),
        (["--limited", "10min", "--fold", "5"], {5}),
    ],
)
def test_subsets_for_limited_supervision_replace_train(corpus, tmp_path, options, numbers):
    whole, part = (prepare(mls, corpus, tmp_path / str(len(o)), "--languages", "pl", *o) for o in ([], options))
    assert set(part.ids("train")) == {mls_id("pl", number) for number in numbers}
    assert (part.ids("dev"), part.ids("test")) == (whole.ids("dev"), whole.ids("test"))


def test_a_handle_without_transcript_and_a_fold_without_effect_are_told(tmp_path):
    folder = make_mls_language(tmp_path, "pl")
    handles = folder / "train" / "limited_supervision" / "9hr" / "handles.txt"
    handles.write_bytes(f"{mls_id('pl', 6)}\n{mls_id('pl', 777)}\n".encode() + b"\xb3\xf3d\n")
    prepared = prepare(mls, folder, tmp_path / "out", "--limited", "9h")
    nameless, unknown = f"{handles}:3", mls_id("pl", 777)
    assert prepared.quarantine().keys() == {nameless, unknown}
    assert prepared.quarantine()[unknown] == "no transcript: transcripts.txt has no such line"
    assert prepared.quarantine()[nameless].startswith("broken line: ")
    assert "--fold 3 has no effect" in prepare(mls, folder, tmp_path / "o", "--fold", "3").error()
    shutil.rmtree(handles.parent)
    assert "9hr/handles.txt does not exist" in prepare(mls, folder, tmp_path / "o", "--limited", "9h").error()


def test_a_folder_without_the_corpus_says_where_to_get_it(tmp_path):
    prepared = prepare(mls, tmp_path, tmp_path / "out")
    assert prepared.status == 2
    assert "https://www.openslr.org/94" in prepared.error()
