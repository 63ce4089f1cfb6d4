"""Command-line options of our own programs, from the signatures and docstrings of their functions."""

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, _loaders_dumpers

from speechllm_pl.apps.messages import nearest, parsing_error
from speechllm_pl.configuration.bounded_yaml import BoundedLoader
from speechllm_pl.core.errors import UserError

_loaders_dumpers.yaml_default_loader = BoundedLoader


class OneLineErrors:
    """Mixin for jsonargparse parsers: errors in one line, with the nearest valid name."""

    _actions: list
    _subcommands_action: Any

    def __init__(self, *arguments: Any, **options: Any):
        # Abbreviations would take a misspelt --trainer.max_epoch for --trainer.max_epochs.
        super().__init__(*arguments, allow_abbrev=False, **options)  # type: ignore[reportCallIssue]

    def parse_path(self, path: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return super().parse_path(path, *arguments, **options)  # type: ignore[reportAttributeAccessIssue]
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: {error}") from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        told, unknown = parsing_error(message)
        raise UserError(f"{told}.{nearest(unknown, self.known_names())}" if unknown else told)

    def known_names(self) -> set[str]:
        """Names of all options of this parser and its subcommands."""
        parsers = (self, *getattr(self._subcommands_action, "_name_parser_map", {}).values())
        actions = [action for parser in parsers for action in parser._actions]
        options = {option.lstrip("-") for action in actions for option in action.option_strings}
        return options | {action.dest for action in actions}


class Parser(OneLineErrors, ArgumentParser):
    """Parser of one of our own programs."""


def run_with_options(name: str, program: Callable[..., None], arguments: list[str]) -> None:
    """Run a program with options by name; only `files` are positional, as shells expand them."""
    settings = inspect.signature(program).parameters
    parser = Parser(prog=f"speechllm {name}", description=(program.__doc__ or "").splitlines()[0])
    parser.add_function_arguments(program, as_positional=False, skip={"files"})
    if "files" in settings:
        parser.add_argument("files", nargs="+", type=str, help="audio files, or folders of them")
    switches = {f"--{name}" for name, setting in settings.items() if setting.annotation is bool}
    values = vars(parser.parse_args(_switches_spelt_out(switches, arguments)))
    program(**{name: value for name, value in values.items() if name in settings})


def _switches_spelt_out(switches: set[str], arguments: list[str]) -> list[str]:
    """Expand `--merge` to `--merge true`: a boolean option may stand alone."""
    spelt = []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        alone = argument in switches and following not in ("true", "false")
        spelt += [argument, "true"] if alone else [argument]
    return spelt
