import pytest

from data_prep.corpora.strange_characters import StrangeCharacters


def test_what_is_told_has_no_character_that_a_terminal_obeys(capsys: pytest.CaptureFixture) -> None:
    strange = StrangeCharacters()
    strange.add("one \x1b two", "en", "a\x1b[2Jb")
    strange.tell()
    told = capsys.readouterr().out
    assert r"'\x1b' U+001B" in told
    assert told.rstrip().endswith(r"for example in a\x1b[2Jb")
