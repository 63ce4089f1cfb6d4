"""The languages that transcripts can be normalised in."""

from speechllm_pl.core.languages import LANGUAGES


def test_all_eight_languages_have_rules():
    assert set(LANGUAGES) == {"en", "de", "nl", "fr", "es", "it", "pt", "pl"}
    assert all(code == rules.code for code, rules in LANGUAGES.items())
