"""What all programs of data_prep have in common: their help, and how they end."""

import argparse
import re
from importlib import import_module
from pathlib import Path

import pytest

from data_prep.machinery.command_line import Refused, run
from speechllm_pl.core.errors import UserError

DATA_PREP = Path(import_module("data_prep").__path__[0])
PROGRAMS = sorted(path.stem for path in DATA_PREP.glob("*.py") if path.stem != "__init__")
PACKAGES = sorted(path.parent.name for path in DATA_PREP.glob("*/__main__.py"))


class Parser(Exception):
    """Carries the parser that a program makes out of it."""


@pytest.mark.parametrize("program", [*PROGRAMS, *(f"{package}.__main__" for package in PACKAGES)])
def test_help_lines_are_sentences_or_names_with_a_capital_and_a_full_stop(program, monkeypatch):
    def parse_args(parser, *_):
        raise Parser(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Parser) as made:
        import_module(f"data_prep.{program}").main()
    (parser,) = made.value.args
    assert parser.prog == f"python -m data_prep.{program.removesuffix('.__main__')}"
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    assert actions
    for action in actions:
        assert re.fullmatch(r"[A-Z].*\.", action.help or ""), action.option_strings


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Refused("--strict: t.tsv:5: silent"), 1, "error: --strict: t.tsv:5: silent"),
        (UserError("table x has no text column"), 2, "error: table x has no text column"),
        (OSError(28, "No space left on device", "out"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_program_ends_with_one_line_and_a_status(capsys, error, status, words):
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        run(main)
    assert exit_.value.code == status
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1
