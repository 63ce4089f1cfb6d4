"""Suspects, findings and the page about prepared data: what was planted is found by name, and nothing else."""

import json
import re

import pytest
from parsed_page import Page
from prepared_corpus import clean_corpus, planted_corpus, write_corpus

from speechllm_pl.analysis.data.suspects import KINDS
from speechllm_pl.apps.data_report import data_report
from speechllm_pl.apps.program_options import DataReportOptions

PLANTED = {
    "language": {"dutch"},
    "alphabet": {"polish"},
    "fast": {"hurried", "hurried more"},
    "silent": {"silent"},
    "constant": {"constant"},
    "clipped": {"clipped"},
    "offset": {"offset"},
    "noisy": {"noisy"},
}
SECTIONS = [
    *("findings", "amounts", "histograms", "letters", "shared", "recordings", "suspects", "picked", "quarantine"),
    "reproduce",
]


def report_of(corpus, folder):
    data_report(DataReportOptions(root=str(write_corpus(folder, corpus))))
    figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return figures, (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return report_of(planted_corpus(), tmp_path_factory.mktemp("report") / "planted & <b>")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return report_of(clean_corpus(), tmp_path_factory.mktemp("report") / "clean")


def test_clean_data_raise_nothing(clean):
    figures, source = clean
    assert figures["findings"] == []
    assert {kind: each["count"] for kind, each in figures["suspects"].items()} == dict.fromkeys(KINDS, 0)
    text = Page(source).text
    assert "Nothing was found." in text
    (none,) = re.findall(r"None: (.*?)\.", text)
    assert none.split(", ") == [words.title.lower() for kind, words in KINDS.items() if kind != "ctc"]  # no checkpoint


def test_every_planted_fault_is_found_by_name_and_no_other(planted):
    figures, _ = planted
    found = {kind: {row["id"] for row in each["worst"]} for kind, each in figures["suspects"].items()}
    assert {kind: ids for kind, ids in found.items() if ids} == PLANTED
    assert {kind: each["count"] for kind, each in figures["suspects"].items()} == {
        k: len(ids) for k, ids in found.items()
    }


def test_the_page_has_its_sections_and_loads_nothing(planted):
    _, source = planted
    page = Page(source)
    assert [section["id"] for section in page.all("section")] == SECTIONS
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert "//" not in re.sub(r"data:audio/mpeg;base64,[\w+/=]+", "", source)
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import|url\((?!#)", source)
    assert "<h1>Data <em>planted &amp; &lt;b&gt;</em></h1>" in source


def test_every_listed_utterance_has_a_player_its_text_and_the_reason(planted):
    figures, source = planted
    page = Page(source)
    rows = [row for each in figures["suspects"].values() for row in each["worst"]] + figures["picked"]
    players = page.all("audio")
    assert [player["aria-label"] for player in players] == [row["id"] for row in rows]
    assert all(player["src"].startswith("data:audio/mpeg;base64,") for player in players)
    for row in rows:
        assert row["text"] in page.text
        assert row["reason"] in page.text
        assert row["path"] in page.text


def test_a_strange_character_is_marked_in_its_sentence(planted):
    assert re.search(r"<mark>е</mark>\w", planted[1])
    assert "U+0435" in planted[1]


def test_the_page_shows_the_amounts(planted):
    figures, source = planted
    text = Page(source).text
    for row in figures["amounts"]:
        shown = f"{row['split']} {row['language']} {row['hours']:.2f} {row['utterances']} {row['speakers']}"
        assert shown in text


def test_the_same_data_give_the_same_bytes(tmp_path):
    folder = write_corpus(tmp_path / "data", planted_corpus())
    pages = []
    for _ in range(2):
        data_report(DataReportOptions(root=str(folder), sample=20, worst=2))
        pages.append((folder / "report.html").read_bytes())
    assert pages[0] == pages[1]
