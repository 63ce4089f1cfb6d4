"""LibriSpeech from a miniature copy: compared with Lhotse's own recipe, and spoilt where that would end."""

from pathlib import Path

import pytest
from lhotse.recipes import prepare_librispeech
from miniature import LS_SUBSETS, cut_short, ls_audio, ls_id, make_librispeech, prepare, sentence, spoil_librispeech

from data_prep import librispeech


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_librispeech(tmp_path_factory.mktemp("librispeech"))


def test_splits_are_joined_subsets_and_those_of_dev_and_test_have_manifests_of_their_own(corpus, tmp_path):
    prepared = prepare(librispeech, corpus, tmp_path / "out")
    assert prepared.quarantine() == {}
    for subset in ("dev-clean", "dev-other", "test-clean", "test-other"):
        assert prepared.ids(subset) == [ls_id(subset, number) for number in range(4)]
    for split in ("dev", "test"):
        assert prepared.cuts(split) == [*prepared.cuts(f"{split}-clean"), *prepared.cuts(f"{split}-other")]
    assert prepared.ids("train") == [ls_id("train-clean-100", number) for number in range(4)]
    assert "train-clean-100.jsonl.gz" not in prepared.files()
    for subset in LS_SUBSETS:
        assert f"{subset} en" in " ".join(prepared.out.split())


def test_texts_speakers_and_genders(corpus, tmp_path):
    prepared = prepare(librispeech, corpus.parent, tmp_path / "out")
    told = {cut.supervisions[0].speaker: cut.supervisions[0].gender for cut in prepared.by_id().values()}
    assert told == {"14": "female", "84": "female", "60": "male", "61": "male", "367": None}
    assert [cut.supervisions[0].text for cut in prepared.cuts("train")] == [sentence("en", n) for n in range(4)]
    assert {cut.supervisions[0].language for cut in prepared.by_id().values()} == {"en"}


def test_a_clean_corpus_is_what_lhotse_makes_of_it(corpus, tmp_path):
    theirs = prepare_librispeech(corpus)
    ours = prepare(librispeech, corpus, tmp_path / "out").by_id()
    assert set(ours) == {s.id for subset in theirs.values() for s in subset["supervisions"]}
    for subset in theirs.values():
        for their in subset["supervisions"]:
            cut = ours[their.id]
            (told,) = cut.supervisions
            assert (told.text, told.speaker) == (their.text.lower(), their.speaker)
            assert cut.duration == pytest.approx(their.duration, abs=1e-6)
            assert (cut.load_audio() == subset["recordings"][their.id].load_audio()).all()


def test_apostrophes_stay_where_they_were_published(tmp_path):
    root = make_librispeech(tmp_path)
    transcripts = next(root.glob("test-clean/*/*/*.trans.txt"))
    name = transcripts.read_text().split()[0]
    transcripts.write_text(f"{name} AN' THE BOYS' MOTHER O' GOIN' HOME\n")
    assert prepare(librispeech, root, tmp_path / "out").by_id()[name].supervisions[0].text == (
        "an' the boys' mother o' goin' home"
    )


@pytest.mark.parametrize("check", ["decode", "header"])
def test_what_cannot_be_used_is_quarantined_with_its_reason_and_nothing_else_is(tmp_path, check):
    root = make_librispeech(tmp_path)
    clean = prepare(librispeech, root, tmp_path / "clean", "--check", check)
    expected = spoil_librispeech(root)
    spoilt = prepare(librispeech, root, tmp_path / "spoilt", "--check", check)
    assert spoilt.status == 0
    assert {name: reason.split(":")[0] for name, reason in spoilt.quarantine().items()} == expected
    assert spoilt.by_id() == clean.by_id()


def test_subsets_are_chosen_and_what_an_earlier_run_left_of_others_is_removed(corpus, tmp_path):
    prepare(librispeech, corpus, tmp_path / "out")
    chosen = ("train-clean-100", "dev-clean", "test-other")
    prepared = prepare(librispeech, corpus, tmp_path / "out", "--subsets", *chosen)
    manifests = {"train", "dev", "test", "dev-clean", "test-other"}
    assert set(prepared.files()) == {"quarantine.tsv", *(f"{name}.jsonl.gz" for name in manifests)}
    assert prepared.cuts("dev") == prepared.cuts("dev-clean")
    missing = prepare(librispeech, corpus, tmp_path / "out", "--subsets", "train-other-500")
    assert "has no train-other-500; there are: train-clean-100, dev-clean" in missing.error()


def test_strict_stops_at_the_first_with_one_line_that_names_it(tmp_path):
    root = make_librispeech(tmp_path)
    cut_short(ls_audio(root, "train-clean-100", 3))
    strict = prepare(librispeech, root, tmp_path / "out", "--strict")
    assert strict.status == 1
    assert "14-209.trans.txt:2 14-209-0003: unreadable" in strict.error()


@pytest.mark.parametrize("check", ["decode", "header"])
def test_what_is_too_long_is_so_in_train_alone(corpus, tmp_path, check):
    whole = prepare(librispeech, corpus, tmp_path / "whole").by_id()
    shortest, *_, longest = sorted({cut.duration for cut in whole.values()})
    limit = (shortest + longest) / 2
    prepared = prepare(librispeech, corpus, tmp_path / "out", "--check", check, "--max-seconds", limit)
    long = {name for name, cut in whole.items() if cut.duration > limit}
    train = {ls_id("train-clean-100", number) for number in range(4)}
    assert {name: reason.split(":")[0] for name, reason in prepared.quarantine().items()} == dict.fromkeys(
        long & train, "too long"
    )
    assert long & train
    assert long - train
    assert set(prepared.by_id()) == set(whole) - (long & train)


def test_a_folder_without_the_corpus_says_where_to_get_it(tmp_path):
    assert "https://www.openslr.org/12" in prepare(librispeech, tmp_path, tmp_path / "out").error()
