"""Configurations in YAML, within bounds: one may come from a stranger, and a few lines can expand to billions.

Reading does not copy the target of an alias, but walking, comparing or printing the result does.
"""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from speechllm_pl.core.errors import UserError, in_one_line
from speechllm_pl.core.moved_settings import where_they_are_now

MOST_CHARACTERS = 100_000
"""Limit of characters and nodes with aliases written out, if there are any: the largest recipe has some thousand."""

DEEPEST = 100
"""Limit of the levels: our files have seven, and a thousand exceed the recursion limit."""


MOVED = {
    "speechllm_pl.training.optimizers.": "speechllm_pl.optim.muon_adamw.",
    "speechllm_pl.training.schedules.": "speechllm_pl.optim.schedules.",
}
"""Where classes are that configurations of earlier versions name."""

BOUNDLESS: Any = get_yaml_default_loader()
"""jsonargparse's own loader, which also reads 1e-3 as a number."""


class Unbounded(yaml.YAMLError, UserError):
    """YAML that exceeds the bounds: small to read, endless to use."""


class BoundedLoader(BOUNDLESS):
    """Loader for all configurations, which refuses YAML beyond the bounds before constructing anything."""

    def __init__(self, text: str):
        """Check the bounds of a text.

        Raises:
            Unbounded: the text has too many levels, or is too long with its aliases written out.
            yaml.YAMLError: the text is not YAML.
        """
        _refuse_unbounded(text)
        for former, present in MOVED.items():
            text = text.replace(former, present)
        super().__init__(text)

    def get_single_data(self) -> Any:
        """Construct the settings, those of earlier versions where they are now."""
        settings = super().get_single_data()
        match settings:
            case {"model": {"init_args": dict(arguments)}}:
                settings["model"]["init_args"] = where_they_are_now(arguments)
        return settings


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
    """Parse a configuration.

    Raises:
        UserError: as in `read_configuration`, but without the name of a file.
    """
    try:
        settings = yaml.load(text, BoundedLoader)
    except yaml.YAMLError as error:
        raise UserError(in_one_line(error)) from error
    if not isinstance(settings, dict):
        raise UserError("it holds no settings")
    return settings


def read_configuration(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        UserError: the file is not YAML or not UTF-8, holds no settings, or exceeds the bounds. The message names it.
    """
    try:
        return parsed_configuration(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise UserError(f"configuration {path} cannot be read: {in_one_line(error)}") from error
