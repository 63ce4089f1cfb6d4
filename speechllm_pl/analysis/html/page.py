"""Pages from the templates of this folder: self-contained HTML in which only charts and templates are markup.

What is shown goes in as values, which are escaped. Nothing on a page is loaded from elsewhere, so that it can be
mailed, archived and read without a network.
"""

import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from speechllm_pl.analysis.data.findings import count, number, percent


class Tile(NamedTuple):
    """A figure of the headline."""

    title: str
    value: str
    unit: str = ""
    note: str = ""
    kind: str = ""
    """`ctc` or `llm` gives it the colour of that system."""


def render(template: str, **values: Any) -> str:
    """The page that `template` makes of `values`.

    Raises:
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    environment = Environment(
        loader=PackageLoader("speechllm_pl.analysis.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "command": command_line,
        "count": count,
        "decibels": decibels,
        "hours": hours,
        "interval": interval,
        "number": number,
        "percent": error_rate,
        "share": percent,
        "visible": visible,
    }
    return environment.get_template(template).render(values)


def command_line(arguments: Sequence[str]) -> str:
    """A command to type: the program by its name, whatever folder it was started from."""
    return shlex.join([Path(arguments[0]).name, *arguments[1:]])


def error_rate(rate: float) -> str:
    """Percent without their sign, with two decimals."""
    return f"{100 * rate:.2f}"


def interval(bounds: Sequence[float]) -> str:
    """Percent without their sign, with one decimal each."""
    low, high = bounds
    return f"{100 * low:.1f}–{100 * high:.1f}"


def hours(value: float) -> str:
    """One decimal from ten hours on, two below."""
    return f"{value:,.1f}".replace(",", "\u202f") if value >= 10 else f"{value:.2f}"


def decibels(value: float | None, unit: str) -> str:
    """Whole decibels with a true minus sign; a dash where there is no value."""
    return "–" if value is None else f"{value:.0f} {unit}".replace("-", "−")


def visible(character: str) -> str:
    """The character, on a dotted circle where it combines; its name where it has no ink."""
    if character == " ":
        return "space"
    if unicodedata.category(character)[0] in "CZ":
        return unicodedata.name(character, f"U+{ord(character):04X}").lower()
    return f"◌{character}" if unicodedata.combining(character) else character
