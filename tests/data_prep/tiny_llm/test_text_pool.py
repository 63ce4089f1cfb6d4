"""Texts to train on: read, drawn, and too few."""

import random
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment

from data_prep.tiny_llm.text_pool import TextPool, read_texts, too_few
from speechllm_pl.core.errors import UserError


def write_manifest(path: Path, texts: dict[str, list[str]]) -> Path:
    cuts = []
    for language, of_language in texts.items():
        for number, text in enumerate(of_language):
            name = f"{language}-{number}"
            supervision = SupervisionSegment(name, name, 0.0, 1.0, text=text, language=language)
            cuts.append(MonoCut(name, 0.0, 1.0, 0, supervisions=[supervision]))
    CutSet.from_cuts(cuts).to_file(path)
    return path


def test_drawn_texts_are_new_mix_no_languages_and_are_never_held_out() -> None:
    texts = {"en": ["one two three", "four five", "six"], "de": ["eins zwei", "drei vier fünf"]}
    pool = TextPool(texts, held_out={"six", "one two"})
    rng = random.Random(0)
    drawn = {pool.draw(rng, max_words=4) for _ in range(2000)}
    words = {language: set(" ".join(of).split()) for language, of in texts.items()}
    assert all(any(set(text.split()) <= of for of in words.values()) for text in drawn)
    assert max(len(text.split()) for text in drawn) == 4
    assert not drawn & {"six", "one two"}
    assert drawn - set(texts["en"]) - set(texts["de"])


def test_texts_are_read_by_language_once_each(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "a.jsonl.gz", {"en": ["one", "two", "one"], "de": ["eins"]})
    assert read_texts([manifest, manifest]) == {"en": ["one", "two"], "de": ["eins"]}


def test_a_missing_and_a_broken_manifest_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        read_texts([tmp_path / "nowhere.jsonl"])
    (tmp_path / "broken.jsonl").write_text('{"id": "x", \n')
    with pytest.raises(UserError, match=r"broken\.jsonl"):
        read_texts([tmp_path / "broken.jsonl"])


def test_too_little_text_is_told_before_minutes_are_spent_on_it() -> None:
    enough = {"en": [f"text {number}" for number in range(150)], "de": [f"Text {number}" for number in range(50)]}
    assert too_few(enough) == ""
    enough["de"].pop()
    assert too_few(enough).startswith("199 different transcripts are too few to make an LLM of")
    assert "LLM=" in too_few(enough)
