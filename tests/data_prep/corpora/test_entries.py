"""Entries of a corpus's listing."""

from dataclasses import fields
from pathlib import Path

from data_prep.corpora.entries import LABELS, Rejection, Utterance, rejection


def test_a_rejection_is_found_again_where_its_utterance_came_from() -> None:
    utterance = Utterance("id", Path("a.wav"), "text", "de", "anna", "dev", source="t.tsv:7")
    assert rejection(utterance, "silent: no sound") == Rejection("dev", "id", "a.wav", "silent: no sound", "t.tsv:7")


def test_labels_are_the_last_fields_of_an_utterance_and_empty_by_default() -> None:
    names = [field.name for field in fields(Utterance)]
    assert tuple(names[-len(LABELS) :]) == LABELS
    utterance = Utterance("id", "a.wav", "text", "de", "anna", "dev")
    assert {getattr(utterance, name) for name in LABELS} == {""}
