"""Charts as inline SVG that take their colours and their typeface from the page around them.

Matplotlib knows no style-sheet variables. So it draws with the placeholder colours below, and `inline_svg`
replaces each of them by a variable: one drawing then serves light pages, dark ones and paper.
"""

import io
import re
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from speechllm_pl.analysis.run.alignment_map import AlignmentMap, draw
from speechllm_pl.analysis.run.run_folder import Curve

INK, MUTED, RULE, CTC, LLM, OTHER = (f"#0102{number:02x}" for number in range(3, 9))
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", CTC: "ctc", LLM: "llm", OTHER: "other"}
"""Placeholder colour → the style-sheet variable that takes its place."""

SYSTEM_STYLES = {"ctc": ("CTC", CTC, "o"), "llm": ("LLM", LLM, "s")}
"""System → label, colour and marker; the marker tells them apart without the colour."""

LOSSES = {
    "train/ctc_loss": ("CTC", CTC, "-"),
    "train/next_token_loss": ("next token", LLM, "-"),
    "train/alignment_loss": ("direct alignment", OTHER, "-"),
    "train/loss": ("weighted sum", INK, ":"),
}
"""Tag → label, colour and line style."""

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's typeface
    "svg.hashsalt": "speechllm",  # the same drawing has the same bytes
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "figure.facecolor": "none",
    "legend.frameon": False,
}


def inline_svg(paint: Callable[[Figure], object], *, size: tuple[float, float], name: str, label: str) -> str:
    """Draw a figure as an `<svg>` element for a page.

    Args:
        paint: draws on an empty figure.
        size: width and height in inches; the page scales the drawing to the room that there is.
        name: makes the ids inside the drawing unique on the page.
        label: text read aloud in place of the drawing.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would style the whole page
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = f'<svg {box[0]} role="img" aria-label="{escape(label)}">{svg[svg.index(">") + 1 :]}'
    svg = re.sub(r'((?:\bid|xlink:href)="#?|url\(#)(?!data:)([\w-]+)', rf"\g<1>{name}-\2", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for placeholder, variable in VARIABLES.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    return svg


def loss_chart(curves: Mapping[str, Curve], *, name: str) -> str:
    """Chart of the training losses by step: pale as logged, strong their running mean."""
    terms = {tag: curves[tag] for tag in LOSSES if curves.get(tag)}
    if len(terms) == 2:  # one term and the weighted sum, which then is that term
        terms.pop("train/loss", None)

    def paint(axis: Axes) -> None:
        for tag, curve in terms.items():
            label, color, line = LOSSES[tag]
            steps, values = np.array(curve).T
            axis.plot(steps, values, line, color=color, alpha=0.3, linewidth=0.9)
            axis.plot(steps, running_mean(values), line, color=color, linewidth=1.9, label=label)

    ends = [f"{LOSSES[tag][0]} from {curve[0][1]:.2f} to {curve[-1][1]:.2f}" for tag, curve in terms.items()]
    return _by_step(paint, "nats a token", name=name, label=f"Training loss by step: {'; '.join(ends)}")


def error_rate_curves(curves: Mapping[str, Curve], *, name: str) -> str:
    """Chart of the word error rates of validations by step."""
    found = {system: curves[f"val/{system}_wer"] for system in SYSTEM_STYLES if curves.get(f"val/{system}_wer")}

    def paint(axis: Axes) -> None:
        for system, curve in found.items():
            label, color, marker = SYSTEM_STYLES[system]
            steps, values = np.array(curve).T
            style = {"marker": marker, "color": color, "linewidth": 1.9, "markersize": 4.5, "clip_on": False}
            axis.plot(steps, 100 * values, label=label, **style)
        axis.set_xlim(left=0)

    ends = [
        f"{SYSTEM_STYLES[system][0]} from {100 * curve[0][1]:.1f} to {100 * curve[-1][1]:.1f} %"
        for system, curve in found.items()
    ]
    return _by_step(paint, "WER %", name=name, label=f"Validation WER by step: {'; '.join(ends)}")


def single_curve(curve: Curve, unit: str, *, name: str, label: str) -> str:
    """Chart of one quantity by step."""

    def paint(axis: Axes) -> None:
        axis.plot(*np.array(curve).T, color=INK, linewidth=1.4)

    return _by_step(paint, unit, name=name, label=label, height=2.1)


def _by_step(paint: Callable[[Axes], None], unit: str, *, name: str, label: str, height: float = 2.9) -> str:
    """Chart of what `paint` draws, from 0 upwards, over the steps of training."""

    def paint_figure(figure: Figure) -> None:
        axis = figure.subplots()
        paint(axis)
        axis.set_ylim(bottom=0)
        axis.set(xlabel="step", ylabel=unit)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        if axis.get_legend_handles_labels()[1]:
            _legend(axis)

    return inline_svg(paint_figure, size=(5.2, height), name=name, label=label)


def error_rate_chart(scores: Mapping[str, Any], rows: list[str], *, name: str) -> str:
    """Chart of the WER of each language with its 95 % interval: a row a language, a mark a system."""

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        systems = [system for system in SYSTEM_STYLES if system in scores]
        for place, system in enumerate(systems):
            label, color, marker = SYSTEM_STYLES[system]
            found = [(row, rates) for row, name in enumerate(rows) if (rates := rates_of(scores[system], name))]
            y = np.array([row for row, _ in found]) + 0.16 * (2 * place - len(systems) + 1)
            low, high = 100 * np.array([rates["confidence_interval"] for _, rates in found]).T
            axis.hlines(y, low, high, color=color, linewidth=1.6, alpha=0.55)
            rate = [100 * rates["wer"] for _, rates in found]
            axis.plot(rate, y, marker, color=color, markersize=5.5, linestyle="none", label=label, clip_on=False)
        axis.set_yticks(range(len(rows)), rows)
        axis.tick_params(axis="y", labelcolor=INK)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.grid(axis="x")
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("WER %, with 95 % interval")
        if "average" in rows:
            axis.axhline(len(rows) - 1.5, color=RULE, linewidth=0.8)
        _legend(axis)

    label = "WER and its 95 % interval per language; the table has the same figures"
    return inline_svg(paint, size=(4.2, 1.0 + 0.36 * len(rows)), name=name, label=label)


def histogram_chart(histogram: Mapping[str, Any], unit: str, *, name: str, label: str) -> str:
    """Histograms of the languages, one above the other on a common axis; values beyond it have another colour.

    Args:
        histogram: `edges` between bars; `counts` by language, with one more than there are bars when it is `open`.
    """
    edges, counts = np.array(histogram["edges"]), histogram["counts"]
    width = edges[1] - edges[0]

    def paint(figure: Figure) -> None:
        axes = figure.subplots(len(counts), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (language, bars) in zip(axes, counts.items(), strict=True):
            axis.bar(edges[:-1], bars[: len(edges) - 1], width=0.9 * width, align="edge", color=CTC)
            if histogram["open"]:
                axis.bar(edges[-1:] + width / 2, bars[-1:], width=0.9 * width, align="edge", color=LLM)
            axis.set_ylabel(language, rotation=0, ha="right", va="center", color=INK)
            axis.set_yticks([max(bars)], [f"{max(bars):,}".replace(",", "\u202f")])
            axis.yaxis.tick_right()
            axis.tick_params(axis="y", right=False, labelsize=8.5)
        axes[-1].set_xlabel(unit)
        axes[-1].xaxis.set_major_locator(MaxNLocator(8))

    return inline_svg(paint, size=(5.2, 0.75 + 0.55 * len(counts)), name=name, label=label)


def alignment_chart(alignment: AlignmentMap, *, name: str) -> str:
    """Heat map of one utterance's alignment, with its scale."""
    tokens = len(alignment.tokens)

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        image = draw(alignment, axis, cmap="magma")
        axis.grid(visible=False)
        axis.tick_params(axis="y", labelcolor=INK)
        bar = figure.colorbar(image, ax=axis, fraction=0.03, pad=0.015, label="cosine similarity")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]

    label = (
        f"Cosine similarity of {tokens} text tokens with {alignment.similarities.shape[1]} audio embeddings;"
        f" monotonicity {alignment.monotonicity:.2f}"
    )
    return inline_svg(paint, size=(9.5, 1.2 + 0.21 * tokens), name=name, label=label)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a twentieth of the curve around each point, over less of it at the ends."""
    reach = len(values) // 40
    return np.array([values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))])


def rates_of(entry: Mapping[str, Any], language: str) -> dict[str, Any] | None:
    """Row of a score table for a language or for `average`; None where the system has no such language."""
    return entry["average"] if language == "average" else entry["languages"].get(language)


def _legend(axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    axis.figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), handlelength=1.6, borderpad=0)  # pyright: ignore
