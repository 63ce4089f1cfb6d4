"""Templates and how they write numbers and characters."""

import pytest
from jinja2 import UndefinedError

from speechllm_pl.analysis.html.page import command_line, decibels, hours, render, visible


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(UndefinedError, match="tiles"):
        render("run.html", name="run")


@pytest.mark.parametrize(("value", "shown"), [(0.004, "0.00"), (9.99, "9.99"), (10, "10.0"), (1234.5, "1\u202f234.5")])
def test_hours(value, shown):
    assert hours(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(None, "–"), (-31.6, "−32 dBFS"), (12.2, "12 dBFS")])
def test_decibels(value, shown):
    assert decibels(value, "dBFS") == shown


@pytest.mark.parametrize(
    ("character", "shown"),
    [("a", "a"), (" ", "space"), ("\u0301", "◌\u0301"), ("\u200b", "zero width space"), ("\x07", "u+0007"), ("<", "<")],
)
def test_characters_without_ink_are_named(character, shown):
    assert visible(character) == shown


def test_a_command_is_named_without_its_folder_and_quoted():
    assert command_line(["/somewhere/bin/speechllm", "report", "--run", "a <b>"]) == "speechllm report --run 'a <b>'"
