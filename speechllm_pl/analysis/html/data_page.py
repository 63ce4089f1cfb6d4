"""The page about prepared data, made of its figures alone: all that it shows is in `report.json`.

Recordings are embedded as MP3.
"""

from collections.abc import Mapping
from pathlib import Path

from speechllm_pl.analysis.data.findings import Figures, number
from speechllm_pl.analysis.data.suspects import KINDS
from speechllm_pl.analysis.html.charts import histogram_chart
from speechllm_pl.analysis.html.page import render

HISTOGRAMS = {
    "seconds": ("seconds", "How long utterances are."),
    "characters_per_second": ("characters a second", "Characters of the transcript, spaces included, by its seconds."),
    "words_per_minute": ("words a minute", "Words of the transcript by its minutes."),
}


def data_page(figures: Figures, sources: Mapping[int, str]) -> str:
    """Render the page.

    Args:
        figures: content of `report.json`.
        sources: utterance → the `data:` URI of its recording.
    """
    judged = {kind: figures["suspects"][kind] for kind in KINDS if kind != "ctc" or figures["checkpoint"]}
    return render(
        "data.html",
        name=Path(figures["root"]).resolve().name,
        figures=figures,
        sources=sources,
        histograms=[_histogram(figures["histograms"][kind], kind) for kind in HISTOGRAMS],
        suspected={KINDS[kind].title: found for kind, found in judged.items() if found["count"]},
        unsuspected=[KINDS[kind].title for kind, found in judged.items() if not found["count"]],
    )


def _histogram(histogram: Figures, kind: str) -> tuple[str, str]:
    """Chart of one histogram, and its caption."""
    unit, caption = HISTOGRAMS[kind]
    totals = "; ".join(f"{language} {sum(bars)}" for language, bars in histogram["counts"].items())
    if histogram["open"]:
        beyond = sum(bars[-1] for bars in histogram["counts"].values())
        caption += f" The last bar, in another colour: {number(beyond)} beyond {histogram['edges'][-1]:g}."
    label = f"Histogram of {unit}; utterances: {totals}"
    chart = histogram_chart(histogram, unit, name=kind.replace("_", "-"), label=label)
    return chart, f"{caption} To the right, the utterances of the highest bar."
