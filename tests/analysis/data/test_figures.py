"""Figures about prepared data, against sums over the utterances themselves."""

import functools
from bisect import bisect_right
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from prepared_corpus import LANGUAGES, RATE, SIZES, planted_corpus, write_corpus

from data_prep.corpora.checked_cuts import cut_from_utterance
from data_prep.corpora.entries import Rejection
from data_prep.corpora.manifest_writer import prepare
from speechllm_pl.analysis.data import figures
from speechllm_pl.analysis.data.listening import HeardRecording, drawn, listen
from speechllm_pl.analysis.data.prepared_data import PreparedData, open_splits, read_through
from speechllm_pl.core.errors import UserError


@pytest.fixture(scope="module")
def corpus():
    return planted_corpus()


@pytest.fixture(scope="module")
def data(corpus, tmp_path_factory) -> PreparedData:
    return read_through(open_splits(write_corpus(tmp_path_factory.mktemp("planted") / "data", corpus)))[0]


def test_amounts_are_those_of_the_utterances(corpus, data):
    rows = {(row["split"], row["language"]): row for row in figures.amounts(data)}
    assert set(rows) == {(split, language) for split in SIZES for language in (*LANGUAGES, "all")}
    for (split, language), row in rows.items():
        chosen = [each for each in corpus if each.split == split and language in (each.language, "all")]
        seconds = [len(each.samples) / RATE for each in chosen]
        assert row["utterances"] == len(chosen)
        assert row["hours"] == pytest.approx(sum(seconds) / 3600)
        assert row["speakers"] == len({each.speaker for each in chosen})
        assert row["words"] == sum(len(each.text.split()) for each in chosen)
        assert row["characters"] == sum(len(each.text) for each in chosen)
        assert list(row["seconds"].values()) == pytest.approx([min(seconds), np.median(seconds), max(seconds)])


def test_histograms_count_every_utterance_in_its_bar(corpus, data):
    def seconds(each):
        return float(np.float32(len(each.samples) / RATE))  # as precise as manifests' indexes keep them

    values = {
        "seconds": seconds,
        "characters_per_second": lambda each: len(each.text) / seconds(each),
        "words_per_minute": lambda each: 60 * len(each.text.split()) / seconds(each),
    }
    for kind, found in figures.histograms(data).items():
        edges = found["edges"]
        for language, bars in found["counts"].items():
            chosen = [values[kind](each) for each in corpus if each.language == language]
            expected = Counter(bisect_right(edges, value) - 1 for value in chosen)
            assert len(bars) == len(edges) - 1 + found["open"]
            assert bars == [expected[place] for place in range(len(bars))]
            assert sum(bars) == len(chosen)


def test_what_lies_beyond_the_last_edge_is_counted_apart():
    values = np.r_[np.full(5000, 3.0), 1e4].astype(np.float32)
    edges = figures._edges(values)
    assert edges[-1] < 1e4
    assert edges[0] == 0
    assert np.allclose(np.diff(edges), edges[1])
    assert len(edges) <= figures.BARS + 2


def test_alphabets_count_every_character(corpus, data):
    for language, row in figures.alphabets(data).items():
        expected = Counter(character for each in corpus if each.language == language for character in each.text)
        assert row["characters"] == dict(expected)
    german = figures.alphabets(data)["de"]
    strange = {each["character"]: each for each in german["strange"]}
    assert set(strange) == set("еśęć")
    assert strange["е"]["count"] == 1
    assert strange["е"]["code"] == "U+0435"
    assert [each["id"] for each in strange["е"]["examples"]] == ["cyrillic"]
    assert [each["id"] for each in german["not_normalised"][0]["examples"]] == ["capital"]
    assert set(german["missing"]) == set("abcdefghijklmnopqrstuvwxyzäöüßé") - set(german["characters"])


@pytest.mark.parametrize("kind", ["text", "speaker"])
def test_what_two_splits_share_is_the_intersection_of_sets(corpus, data, kind):
    rows = figures.overlaps(data)[f"{kind}s"]
    assert [tuple(row["splits"]) for row in rows] == list(combinations(SIZES, 2))
    for row in rows:
        sets = [{getattr(each, kind) for each in corpus if each.split == split} for split in row["splits"]]
        common = sets[0] & sets[1]
        assert row["values"] == len(common)
        for split in row["splits"]:
            inside = [each for each in corpus if each.split == split]
            touched = [each for each in inside if getattr(each, kind) in common]
            assert row["utterances"][split] == len(touched)
            assert row["share"][split] == pytest.approx(len(touched) / len(inside))
        assert {example[kind] for example in row["examples"]} == common
        for example in row["examples"]:
            ids = {each.id: each for each in corpus}
            assert {getattr(ids[id_], kind) for id_ in example["ids"].values()} == {example[kind]}


def test_ids_and_texts_that_come_twice_are_counted(corpus, tmp_path):
    twice = [each for each in corpus if each.id in ("clipped", "leaked")]
    texts = [each.__class__(**{**each.__dict__, "id": f"{each.id} again"}) for each in twice]
    ids = [each.__class__(**{**each.__dict__, "split": "test", "text": f"of {each.id}"}) for each in twice]
    data, _ = read_through(open_splits(write_corpus(tmp_path / "data", [*corpus, *texts, *ids])))
    found = figures.overlaps(data)
    assert (found["ids"]["values"], found["ids"]["utterances"]) == (2, 4)
    assert set(found["ids"]["examples"]) == {"clipped", "leaked"}
    assert found["repeated_texts"] == {"train": 1, "dev": 1, "test": 0}


def test_unknown_speakers_are_not_one_speaker(tmp_path):
    corpus = [each.__class__(**{**each.__dict__, "speaker": "unknown"}) for each in planted_corpus()]
    data, _ = read_through(open_splits(write_corpus(tmp_path / "data", corpus)))
    assert [row["values"] for row in figures.overlaps(data)["speakers"]] == [0, 0, 0]
    rows = figures.amounts(data)
    assert all((row["speakers"], row["without_speaker"]) == (0, row["utterances"]) for row in rows)


def test_levels_are_medians_of_what_was_heard(data):
    heard: dict[int, HeardRecording] = listen(data, drawn(data, 30, seed=0), None, max_duration=20)
    rows = figures.levels(data, heard)
    assert sum(row["decoded"] for row in rows) == 30
    for row in rows:
        levels = [
            each.measures.level
            for number, each in heard.items()
            if (data.split_of(number), data.language_of(number)) == (row["split"], row["language"])
        ]
        assert row["level"] == pytest.approx(np.median(levels))


# quarantine


def test_quarantine_is_summed_up_by_kind_over_all_parts(tmp_path):
    rejected = [
        Rejection("train", "a", "a.wav", "silent", 'transcripts.txt:1 "'),
        Rejection("dev", "b", "b.wav", "too long: 31.2 s"),
        Rejection("train", "c", "c.wav", "too long: 99 s"),
    ]
    for items, folder in ((rejected[:2], tmp_path), (rejected[2:], tmp_path / "parts" / "de")):
        with pytest.raises(UserError):  # nothing is left
            prepare(items, folder, jobs=1, make_cut=functools.partial(cut_from_utterance, max_seconds=30))
    long, silent = figures.quarantine(tmp_path)
    assert (long["kind"], long["count"], long["splits"]) == ("too long", 2, {"dev": 1, "train": 1})
    assert long["example"] == ("b", "too long: 31.2 s")
    assert (silent["kind"], silent["count"]) == ("silent", 1)
    assert figures.quarantine(tmp_path / "elsewhere") == []
