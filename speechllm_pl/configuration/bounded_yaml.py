"""Configurations in YAML, within bounds: one may come from a stranger, and a few lines can stand for billions.

Reading does not copy what an alias stands for, but whoever walks, compares or prints the result does.
"""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from speechllm_pl.core.errors import UserError, in_one_line

MOST_CHARACTERS = 100_000
"""Of scalars and nodes, where there are aliases, if these were written out: the largest recipe has some thousand."""

DEEPEST = 100
"""Levels: ours have seven, and a thousand are more than recursion can walk."""


BOUNDLESS: Any = get_yaml_default_loader()
"""jsonargparse's own, which also takes 1e-3 for a number."""


class Unbounded(yaml.YAMLError, UserError):
    """YAML that is small to read and endless to use."""


class BoundedLoader(BOUNDLESS):
    """The loader of every reader of configurations: what is without bounds is refused before anything is made of it."""

    def __init__(self, text: str):
        """
        Raises:
            Unbounded: of too many levels, or too long if its aliases were written out.
            yaml.YAMLError: no YAML.
        """
        _refuse_unbounded(text)
        super().__init__(text)


def _refuse_unbounded(text: str) -> None:
    sizes: dict[str | None, int] = {}  # anchor → what an alias of it stands for
    begun: list[tuple[str | None, int]] = []  # anchors of what has not ended, and the size of all before
    size = 0
    for event in yaml.parse(text, Loader=BOUNDLESS):
        if isinstance(event, yaml.AliasEvent):
            size += sizes.get(event.anchor, 1)
            if size > MOST_CHARACTERS:
                raise Unbounded("its aliases would make it too long if they were written out: write it without them")
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1 + len(event.value)
            size += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            sizes[event.anchor] = MOST_CHARACTERS  # until it ends: what contains itself never does
            begun.append((event.anchor, size))
            size += 1
            if len(begun) > DEEPEST:
                raise Unbounded(f"it has more than {DEEPEST} levels, one inside the other")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            sizes[anchor] = size - before


def parsed_configuration(text: str) -> dict[str, Any]:
    """
    Raises:
        UserError: names no file: see `read_configuration`.
    """
    try:
        settings = yaml.load(text, BoundedLoader)
    except yaml.YAMLError as error:
        raise UserError(in_one_line(error)) from error
    if not isinstance(settings, dict):
        raise UserError("it holds no settings")
    return settings


def read_configuration(path: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: names the file: it is not YAML or not UTF-8, holds no settings, or is without bounds.
    """
    try:
        return parsed_configuration(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise UserError(f"configuration {path} cannot be read: {in_one_line(error)}") from error
