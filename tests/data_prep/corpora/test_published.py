"""What all programs for published corpora promise: their help and their options."""

import pytest

from data_prep import common_voice, librispeech, mls, voxpopuli
from data_prep.corpora.published import LANGUAGES, gender
from speechllm_pl.core.languages import LANGUAGES as WITH_RULES

PROGRAMS = (mls, common_voice, voxpopuli, librispeech)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_says_where_to_get_it_its_licence_size_and_time(program, capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert "https://" in lines["Where"]
    assert "CC" in lines["Licence"]
    assert "Size" in lines
    assert "hour of audio" in lines["Time"]
    assert f"python -m data_prep.{program.__name__.split('.')[1]} " in printed
    for option in ("--corpus", "--output", "--jobs", "--check", "--strict", "--max-seconds"):
        assert option in printed


def test_all_languages_of_the_project_have_rules_for_their_text():
    assert set(LANGUAGES) == set(WITH_RULES) == set(mls.NAMES)


def test_what_speakers_say_of_themselves_is_kept_where_all_corpora_have_a_word_for_it():
    assert [gender(label) for label in ("M", " female ", "male_masculine", "non-binary", "", "other")] == [
        *("male", "female", "male", "", "", "")
    ]
