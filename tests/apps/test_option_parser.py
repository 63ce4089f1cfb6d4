"""Options of our own programs: from dataclasses, with whole sentences for help."""

import re
from dataclasses import dataclass
from typing import Literal

import pytest

from speechllm_pl.apps.main import OPTIONS
from speechllm_pl.apps.option_parser import parsed, parser_of
from speechllm_pl.apps.run import _parser as parser_of_run
from speechllm_pl.core.errors import UserError


@dataclass
class Paint:
    """Paint walls.

    Not shown.
    """

    files: list[str]
    """Not shown either."""
    colour: Literal["red", "green"] = "red"
    """Colour of the walls."""
    coats: int = 1
    """Number of coats."""
    glossy: bool = False
    """Whether they shine."""


def paint(*arguments: str, others: bool = False) -> tuple[Paint, list[str]]:
    return parsed("paint", Paint, [*arguments], others=others)


def test_options_are_the_fields_by_name_and_files_stand_alone() -> None:
    assert paint("--colour", "green", "a", "b") == (Paint(["a", "b"], "green"), [])
    assert paint("a", "--coats=2")[0].coats == 2


@pytest.mark.parametrize(("given", "glossy"), [((), True), (("true",), True), (("false",), False)])
def test_a_switch_may_stand_alone(given: tuple[str, ...], glossy: bool) -> None:
    assert paint("a", "--glossy", *given)[0] == Paint(["a"], glossy=glossy)
    assert paint("--glossy", *given, "--coats", "3", "a")[0] == Paint(["a"], "red", 3, glossy)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("a", "--color", "red"), "--color red. Did you mean colour?"),
        (("a", "--colo", "red"), "Did you mean colour?"),
        (("a", "--colour", "blue"), "green"),
        (("a", "--coats", "many"), "coats"),
        ((), "files"),
    ],
    ids=" ".join,
)
def test_mistakes_are_named_in_one_line(given: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError) as error:
        paint(*given)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@dataclass
class Varnish:
    """Varnish boards."""

    coats: int = 1
    """Number of coats."""
    glossy: bool = False
    """Whether they shine."""


def test_other_arguments_may_stand_among_those_of_a_program() -> None:
    given = ["--data.root", "x", "--coats", "2", "--model.lora_r=3", "--glossy", "--coats=4", "-q", "--run"]
    others = ["--data.root", "x", "--model.lora_r=3", "-q", "--run"]
    assert parsed("varnish", Varnish, given, others=True) == (Varnish(4, True), others)
    with pytest.raises(UserError, match=r"--data\.root"):
        parsed("varnish", Varnish, given)


def test_help_says_the_first_line_and_what_fields_are(capsys: pytest.CaptureFixture) -> None:
    for others in (False, True):
        with pytest.raises(SystemExit):
            parsed("varnish", Varnish, ["--help"], others=others)
        shown = " ".join(capsys.readouterr().out.split())
        assert "usage: speechllm varnish" in shown
        assert "Varnish boards." in shown
        assert "--coats COATS Number of coats. (type: int, default: 1)" in shown
        assert ("All other arguments are those of `speechllm fit`" in shown) == others


@pytest.mark.parametrize("name", [*OPTIONS, "run"])
def test_help_lines_are_sentences_or_names_with_a_capital_and_a_full_stop(name: str) -> None:
    parser = parser_of_run() if name == "run" else parser_of(name, OPTIONS[name])
    actions = [action for action in parser._actions if "-h" not in action.option_strings]
    assert actions or name == "fetch"
    for action in actions:
        assert re.fullmatch(r"[A-Z].*\.", action.help or "", re.DOTALL), action.option_strings or action.dest
