"""Texts that nobody can have said are objected to, with the reason; what may have been said is not."""

import pytest

from speechllm_pl.recognition.guard import objection
from speechllm_pl.recognition.hypothesis import Hypothesis

HEARD = Hypothesis("nine hundred ninty nine thousend and four")


@pytest.mark.parametrize(
    "text",
    [
        "nine hundred ninety nine thousand and four",
        "nine hundred ninety nine",
        "no no no no no no no nine hundred ninety nine thousand",
        HEARD.text + " or five",
    ],
)
def test_what_resembles_what_was_heard_is_believed(text: str) -> None:
    assert objection(Hypothesis(text), HEARD) == ""


@pytest.mark.parametrize(
    ("text", "heard", "reason"),
    [
        (Hypothesis("thank you for watching"), Hypothesis(""), "heard nothing"),
        (Hypothesis("nine " * 5, looped=True, truncated=True), HEARD, "loop"),
        (Hypothesis("nine hundred ninety", truncated=True), HEARD, "did not end"),
        (Hypothesis("nine hundred " * 7), Hypothesis("nine hundrid " * 7), "repeats itself"),
        (Hypothesis("four"), HEARD, "too short"),
        (Hypothesis(HEARD.text + ", which is as much as a man can count in a week or two"), HEARD, "too long"),
        (Hypothesis("subtitles by a volunteer of this site"), HEARD, "little in common"),
        (Hypothesis(HEARD.text + " of all people"), HEARD, "goes on behind"),
    ],
)
def test_what_cannot_have_been_said_is_objected_to(text: Hypothesis, heard: Hypothesis, reason: str) -> None:
    assert reason in objection(text, heard)


def test_what_the_ctc_head_gives_next_to_no_probability_is_objected_to_however_short() -> None:
    assert "heard other words" in objection(Hypothesis("um"), Hypothesis("e"), confidence=0.04)
    assert objection(Hypothesis("um"), Hypothesis("e"), confidence=0.2) == ""


def test_silence_is_no_objection_to_an_empty_text() -> None:
    assert objection(Hypothesis(""), Hypothesis("")) == ""


@pytest.mark.parametrize(("text", "heard"), [("two", "u"), ("yes", "a"), ("six", "si"), ("two", "tu wan")])
def test_short_texts_may_differ(text: str, heard: str) -> None:
    assert objection(Hypothesis(text), Hypothesis(heard)) == ""
