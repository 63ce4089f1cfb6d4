"""Parsing of command lines by jsonargparse: errors in one line, and the options of our own programs."""

import itertools
from dataclasses import fields
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, _loaders_dumpers, set_parsing_settings

from speechllm_pl.apps.messages import nearest, parsing_error
from speechllm_pl.configuration.bounded_yaml import BoundedLoader
from speechllm_pl.core.errors import UserError

_loaders_dumpers.yaml_default_loader = BoundedLoader
set_parsing_settings(docstring_parse_attribute_docstrings=True)


OF_FIT = "All other arguments are those of `speechllm fit`: several --config, then dotted overrides."
"""End of the help of programs that take a configuration of `fit`."""


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


def parser_of(name: str, kind: type, epilog: str | None = None) -> Parser:
    """Make the parser of a program; only `files` are positional, as shells expand them.

    Args:
        name: name of the program.
        kind: dataclass of its options.
    """
    parser = Parser(prog=f"speechllm {name}", description=(kind.__doc__ or "").splitlines()[0], epilog=epilog)
    parser.add_class_arguments(kind, as_group=False, skip={"files"})
    if "files" in kind.__dataclass_fields__:
        parser.add_argument(
            "files", nargs="+", type=str, help="Audio files, or folders of them; with --stream one, or -."
        )
    return parser


def parsed(name: str, kind: type, arguments: list[str], *, others: bool = False) -> tuple[Any, list[str]]:
    """Parse the options of a program.

    Args:
        name: name of the program.
        kind: dataclass of its options.
        others: whether arguments of `speechllm fit` may stand among them.

    Returns:
        An instance of `kind`, and the other arguments.
    """
    parser = parser_of(name, kind, OF_FIT if others else None)
    switches = {f"--{field.name}" for field in fields(kind) if field.type is bool}
    arguments = _switches_spelt_out(switches, arguments)
    own, rest = _split(parser, arguments) if others else (arguments, [])
    return kind(**vars(parser.parse_args(own))), rest


def _switches_spelt_out(switches: set[str], arguments: list[str]) -> list[str]:
    """Expand `--merge` to `--merge true`: a boolean option may stand alone."""
    spelt = []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        alone = argument in switches and following not in ("true", "false")
        spelt += [argument, "true"] if alone else [argument]
    return spelt


def _split(parser: Parser, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate the arguments of the parser's options, all of which take a value, from the others."""
    own, rest, remaining = [], [], iter(arguments)
    for argument in remaining:
        option, equals, _ = argument.partition("=")
        known = option in parser._option_string_actions
        (own if known else rest).append(argument)
        if known and not equals and option not in ("-h", "--help"):
            own += itertools.islice(remaining, 1)
    return own, rest
