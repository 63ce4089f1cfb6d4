"""Texts without audio become cuts that last as long as the speakers of a manifest would take."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment


def spoken(folder: Path) -> Path:
    """A manifest of people who take exactly 0.5 s and 0.1 s a letter (de), or 0.2 s a letter (en)."""
    cuts = []
    for number in range(40):
        language = ("de", "en")[number % 2]
        letters = 5 + number
        seconds = 0.5 + 0.1 * letters if language == "de" else 0.2 * letters
        name = f"{language}-{number}"
        said = SupervisionSegment(name, name, 0.0, seconds, text="a" * letters, language=language)
        cuts.append(MonoCut(name, 0.0, seconds, 0, supervisions=[said]))
    CutSet.from_cuts(cuts).to_file(folder / "train.jsonl.gz")
    return folder / "train.jsonl.gz"


def prepare(folder: Path, content: bytes, *more: str, status: int = 0) -> tuple[list[dict], str]:
    """Run the program; the cuts that it wrote, and what it printed."""
    (folder / "text.txt").write_bytes(content)
    output = folder / "text.jsonl.gz"
    given = ["--text", str(folder / "text.txt"), "--like", str(spoken(folder)), "--output", str(output), *more]
    command = [sys.executable, "-m", "data_prep.text_alone", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    lines = gzip.decompress(output.read_bytes()).decode().splitlines() if status == 0 else []
    return [json.loads(line) for line in lines], done.stdout + done.stderr


def test_lines_become_normalised_texts_of_their_language_as_long_as_they_would_be_said(tmp_path: Path) -> None:
    cuts, told = prepare(tmp_path, b"de\tEins, zwei!\nSeventy-eight.\n\nde\teins zwei\n", "--language", "en")
    said = [(cut["supervisions"][0]["language"], cut["supervisions"][0]["text"], cut["duration"]) for cut in cuts]
    assert [each[:2] for each in said] == [("de", "eins zwei"), ("en", "seventy eight")]  # the fourth is the first
    assert [each[2] for each in said] == pytest.approx([0.5 + 0.9, 0.2 * 13], abs=0.002)
    assert all(cut["custom"] == {"text_alone": True} and "recording" not in cut for cut in cuts)
    assert len({cut["id"] for cut in cuts}) == 2
    assert "2 texts (de 1, en 1)" in told


def test_the_same_text_gives_the_same_bytes_and_too_long_ones_are_left_out(tmp_path: Path) -> None:
    content = b"a\n" + b"b" * 300
    first, told = prepare(tmp_path, content, "--language", "de")
    bytes_of_first = (tmp_path / "text.jsonl.gz").read_bytes()
    prepare(tmp_path, content, "--language", "de")
    assert (tmp_path / "text.jsonl.gz").read_bytes() == bytes_of_first
    assert [cut["supervisions"][0]["text"] for cut in first] == ["a"]
    assert "left out 1" in told


def test_lengths_vary_as_those_of_the_speakers_do(tmp_path: Path) -> None:
    """A language that the manifest lacks has the speaking rate of all of it, whose two kinds differ."""
    cuts, _ = prepare(tmp_path, "".join(f"sv\tett{'a' * (n % 7)} {n}\n" for n in range(200)).encode())
    lengths = np.array([len(cut["supervisions"][0]["text"]) for cut in cuts])
    rates = np.array([cut["duration"] for cut in cuts]) / lengths
    assert rates.std() > 0.02
    assert 0.1 < rates.mean() < 0.25


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"eins", "text.txt:1: of which language? Give --language, or lines of language<TAB>sentence"),
        (b"de\teins\nde\t\xff\n", "text.txt:2: not UTF-8"),
        (b"\n", "has no sentence that can be used"),
    ],
)
def test_lines_that_cannot_be_used_are_told(tmp_path: Path, content: bytes, told: str) -> None:
    assert told in prepare(tmp_path, content, status=2)[1]
