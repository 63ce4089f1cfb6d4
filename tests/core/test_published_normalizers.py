"""Published normalisers are those of Whisper, as transformers has them; without the package one line says so."""

import json
import sys
from importlib.resources import files

import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.published_normalizers import published_normalizer

SENTENCES = [
    "Mr. Smith's colour wasn't £20, um, it's twenty-one dollars!",
    "It cost $4.50 in the '90s [laughter] (aside), I'd say five hundred and six",
    "Zwölf Straßen, äh, NULL acht — fünfzehn.",
]


def test_english_has_rules_of_its_own() -> None:
    spelling = json.loads(files("whisper_normalizer").joinpath("normalizers/english.json").read_text())
    english, basic = EnglishTextNormalizer(spelling), BasicTextNormalizer()
    ours, ours_basic = published_normalizer("whisper"), published_normalizer("whisper-basic")
    assert ours
    assert ours_basic
    for sentence in SENTENCES:
        assert ours(sentence, "en") == english(sentence)
        assert ours(sentence, "de") == ours_basic(sentence, "en") == basic(sentence)
    assert ours(SENTENCES[0], "en") != ours(SENTENCES[0], "de")


def test_none_is_none() -> None:
    assert published_normalizer("none") is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "whisper_normalizer.basic", None)
    with pytest.raises(UserError, match=r"--normalizer whisper needs the package whisper-normalizer: pip install"):
        published_normalizer("whisper")
