"""Render pages from the templates of this folder, as self-contained HTML.

Values are escaped; only templates and charts are markup. A page loads nothing from elsewhere, so it can be mailed,
archived and read without a network.
"""

import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from speechllm_pl.analysis.data.findings import count, number, percent


class Tile(NamedTuple):
    """One figure of the headline."""

    title: str
    value: str
    unit: str = ""
    note: str = ""
    kind: str = ""
    """`ctc` or `llm` gives it the colour of that system."""


def render(template: str, **values: Any) -> str:
    """Render the page that `template` makes of `values`.

    Raises:
        jinja2.UndefinedError: the template needs a value that is missing.
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
    """Format a command to type, the program without the folder that it was started from."""
    return shlex.join([Path(arguments[0]).name, *arguments[1:]])


def error_rate(rate: float) -> str:
    """Format a rate in percent with two decimals, without the sign."""
    return f"{100 * rate:.2f}"


def interval(bounds: Sequence[float]) -> str:
    """Format two rates in percent with one decimal, without the sign."""
    low, high = bounds
    return f"{100 * low:.1f}–{100 * high:.1f}"


def hours(value: float) -> str:
    """Format hours with one decimal from ten on, with two below."""
    return f"{value:,.1f}".replace(",", "\u202f") if value >= 10 else f"{value:.2f}"


def decibels(value: float | None, unit: str) -> str:
    """Format whole decibels with a true minus sign; a dash for a missing value."""
    return "–" if value is None else f"{value:.0f} {unit}".replace("-", "−")


def visible(character: str) -> str:
    """Make a character visible: a combining one on a dotted circle, one without ink by its name."""
    if character == " ":
        return "space"
    if unicodedata.category(character)[0] in "CZ":
        return unicodedata.name(character, f"U+{ord(character):04X}").lower()
    return f"◌{character}" if unicodedata.combining(character) else character
