"""Transcripts as files: each format as its readers expect it."""

import json
import re
import textwrap
from typing import Any

import numpy as np
import pytest

from speechllm_pl.recognition.formats import CUE_PAUSE_SECONDS, CUE_SECONDS, FORMATS, LINE_CHARACTERS, cues
from speechllm_pl.recognition.hypothesis import Alternative
from speechllm_pl.recognition.transcript import Piece, Transcript
from speechllm_pl.recognition.word_times import Word


def said(*words: tuple[str, float, float]) -> tuple[Word, ...]:
    return tuple(Word(text, start, end, 0.875, aligned=True) for text, start, end in words)


HELLO = Piece(0.0, 3.0, "hello <world>", said(("hello", 0.5, 0.9), ("<world>", 1.0, 1.46)), "llm")
SILENCE = Piece(3.0, 3700.0, "", (), "silence")
LATER: dict[str, Any] = {"text": "later", "log_probability": -4.5, "ctc_log_probability": -0.25}
LATE = Piece(
    *(3700.0, 3724.0, "late", said(("late", 3723.25, 3723.75)), "ctc", "the LLM's text was a loop"),
    alternatives=(Alternative(**LATER),),
)
TRANSCRIPT = Transcript(3724.0, "en", (HELLO, SILENCE, LATE))


def written(suffix: str, transcript: Transcript = TRANSCRIPT) -> str:
    return "".join(FORMATS[suffix](transcript, "given/my talk.wav", "my talk"))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("txt", "hello <world> late\n"),
        (
            "srt",
            "1\n00:00:00,500 --> 00:00:01,460\nhello <world>\n\n2\n01:02:03,250 --> 01:02:03,750\nlate\n",
        ),
        (
            "vtt",
            "WEBVTT\n\n00:00:00.500 --> 00:00:01.460\nhello &lt;world&gt;\n\n01:02:03.250 --> 01:02:03.750\nlate\n",
        ),
        ("tsv", "start\tend\ttext\n500\t1460\thello <world>\n3723250\t3723750\tlate\n"),
        (
            "ctm",
            "my_talk 1 0.50 0.40 hello 0.88\nmy_talk 1 1.00 0.46 <world> 0.88\nmy_talk 1 3723.25 0.50 late 0.88\n",
        ),
    ],
)
def test_each_format_is_what_its_readers_expect(suffix: str, content: str) -> None:
    assert written(suffix) == content


def test_json_says_all_that_is_known() -> None:
    known = json.loads(written("json"))
    assert known["text"] == "hello <world> late"
    assert (known["file"], known["recording"]) == ("given/my talk.wav", "my talk")
    assert (known["seconds"], known["language"]) == (3724.0, "en")
    assert known["decoded_by"] == "llm,ctc"
    assert [piece["decoded_by"] for piece in known["pieces"]] == ["llm", "silence", "ctc"]
    assert known["pieces"][2]["remark"] == "the LLM's text was a loop"
    assert [piece["alternatives"] for piece in known["pieces"]] == [[], [], [LATER]]
    assert known["pieces"][0]["words"][1] == {
        "text": "<world>",
        "start_seconds": 1.0,
        "end_seconds": 1.46,
        "confidence": 0.875,
        "aligned": True,
    }


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_a_recording_without_words_is_a_file_without_words(suffix: str) -> None:
    content = written(suffix, Transcript(9.0, None, (Piece(0.0, 9.0, "", (), "silence"),)))
    empty = {"txt": "\n", "srt": "", "vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n", "ctm": ""}
    assert content == empty[suffix] if suffix in empty else json.loads(content)["text"] == ""


def test_cues_keep_every_word_and_their_limits() -> None:
    starts = [0.31 * number + (number > 60) * 5 for number in range(100)]
    words = said(*((f"word{number}", start, start + 0.3) for number, start in enumerate(starts)))
    shown = list(cues(words))
    assert [text for cue in shown for text in cue.text.split()] == [word.text for word in words]
    assert all(len(cue.text) <= 2 * LINE_CHARACTERS + 1 for cue in shown)
    assert all(cue.end_seconds - cue.start_seconds <= CUE_SECONDS for cue in shown)
    assert any(cue.end_seconds == words[60].end_seconds for cue in shown)  # the pause after it
    assert CUE_PAUSE_SECONDS < 5


@pytest.mark.parametrize("suffix", ["srt", "vtt"])
def test_subtitles_have_two_lines_of_42_characters(suffix: str) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 20, 300).tolist()
    words = [("<" + "x" * (length - 1), 0.1 * n, 0.1 * n + 0.1) for n, length in enumerate(lengths)]
    transcript = Transcript(30.0, None, (Piece(0.0, 30.0, " ".join(text for text, *_ in words), said(*words), "llm"),))
    content = written(suffix, transcript).replace("&lt;", "<")
    shown = [block.split(" --> ")[1].splitlines()[1:] for block in content.split("\n\n") if "-->" in block]
    assert [text for block in shown for line in block for text in line.split()] == [text for text, *_ in words]
    assert max(len(line) for block in shown for line in block) <= 42
    for block, (following, *_) in zip(shown, [*shown[1:], ["y" * 99]], strict=True):
        text = " ".join(block)
        assert len(block) == (2 if len(text) > 42 else 1)
        breaks = [max(place, len(text) - place - 1) for place, character in enumerate(text) if character == " "]
        assert len(block) == 1 or max(map(len, block)) == min(breaks)
        assert len(textwrap.wrap(f"{text} {following.split()[0]}", 42)) > 2  # no room for another word
    tsv = written("tsv", transcript).splitlines()[1:]
    assert [line.split("\t")[2] for line in tsv] == [" ".join(block) for block in shown]


def test_a_word_longer_than_a_cue_stands_alone() -> None:
    words = said(("a", 0.0, 0.2), ("b" * 100, 0.3, 9.0), ("c", 9.1, 9.3))
    assert [re.sub("b+", "b", cue.text) for cue in cues(words)] == ["a", "b", "c"]
