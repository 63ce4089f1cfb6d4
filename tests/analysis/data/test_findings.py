"""Figures in words."""

import json

import pytest
from prepared_corpus import planted_corpus, write_corpus

from speechllm_pl.analysis.data.findings import count, findings, percent
from speechllm_pl.apps.data_report import data_report
from speechllm_pl.apps.program_options import DataReportOptions


def test_findings_say_it_in_words(tmp_path):
    root = write_corpus(tmp_path / "planted", planted_corpus())
    data_report(DataReportOptions(root=str(root)))
    found = findings(json.loads((root / "report.json").read_text(encoding="utf-8")))
    sentences = " ".join(each["text"] for each in found)
    for sentence in (
        "1 utterance of dev (4.2 %) has a text that is also in train; 0 of five words or more.",
        "1 speaker is in both train and test: 1 utterance of test (4.2 %).",
        "de has 4 characters outside its alphabet:",
        "capitals, punctuation or invisible characters",
        "1 utterance of 144 (0.69 %) reads like another language.",
        "1 recording of 144 decoded (0.69 %) is clipped.",
        "1 recording of 144 decoded (0.69 %) is silent.",
    ):
        assert sentence in sentences
    assert {each["about"] for each in found} == {"shared", "letters", "suspects"}


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0 %"), (0.000123, "0.012 %"), (0.042, "4.2 %"), (0.994, "99 %"), (0.9996, "100.0 %"), (1, "100 %")],
)
def test_a_share_has_two_digits_that_count(share, shown):
    assert percent(share) == shown


def test_one_is_singular():
    assert [count(n, "utterance") for n in (0, 1, 12345)] == ["0 utterances", "1 utterance", "12\u202f345 utterances"]
