"""One self-contained HTML page about prepared data, from its figures alone: what is on the page is in `report.json`.

Nothing is loaded from elsewhere; recordings are in the page as MP3.
"""

import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from speechllm_pl.analysis.data.findings import Figures, count, number, percent
from speechllm_pl.analysis.data.suspects import KINDS
from speechllm_pl.analysis.html.charts import histogram_chart
from speechllm_pl.analysis.html.page import html_page

HISTOGRAMS = {
    "seconds": ("seconds", "How long utterances are."),
    "characters_per_second": ("characters a second", "Characters of the transcript, spaces included, by its seconds."),
    "words_per_minute": ("words a minute", "Words of the transcript by its minutes."),
}


def page(figures: Figures, sources: Mapping[int, str]) -> str:
    """The whole page.

    Args:
        figures: what `report.json` holds.
        sources: utterance → the `data:` URI of its recording.
    """
    name = Path(figures["root"]).resolve().name
    sections = (
        ("findings", "Findings", _findings(figures)),
        ("amounts", "Hours, utterances, speakers", _amounts(figures)),
        ("histograms", "Lengths and speaking rates", _histograms(figures)),
        ("letters", "Letters", _letters(figures)),
        ("shared", "What splits share", _shared(figures)),
        ("recordings", "Recordings", _recordings(figures)),
        ("suspects", "The worst of each kind", _suspects(figures, sources)),
        ("picked", "Picked at random", _picked(figures, sources)),
        ("quarantine", "Rejected in preparation", _quarantine(figures)),
        ("reproduce", "How this page was made", _reproduce(figures)),
    )
    return html_page("Data", name, "Prepared data", _headline(figures), sections)


def _headline(figures: Figures) -> str:
    splits = [row for row in figures["amounts"] if row["language"] == "all"]
    tiles = [
        (row["split"], f"{_hours(row['hours'])}<small> hours</small>", count(row["utterances"], "utterance"))
        for row in splits
    ]
    languages = ", ".join(figures["alphabets"])
    tiles.append(("languages", number(len(figures["alphabets"])), escape(languages)))
    found = figures["findings"]
    tiles.append(("findings", number(len(found)), "listed below" if found else "nothing was found"))
    cells = "".join(
        f'<div class="tile"><dt>{title}</dt><dd class="value">{value}</dd><dd class="note">{note}</dd></div>'
        for title, value, note in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _findings(figures: Figures) -> str:
    found = "".join(
        f'<li>{escape(each["text"])} <a href="#{each["about"]}">see</a></li>' for each in figures["findings"]
    )
    listed = f'<ul class="findings">{found}</ul>' if found else '<p class="clean">Nothing was found.</p>'
    notes = "".join(f"<li>{escape(note)}</li>" for note in figures["notes"])
    return listed + (f'<ul class="notes">{notes}</ul>' if notes else "")


# figures


def _table(
    caption: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]], named: int = 1, words: int = 0
) -> str:
    """Rows as (class, cells) whose first `named` cells name it, and whose last `words` cells are text, as markup."""

    def kind(column: int) -> str:
        return "name" if column < named else "words" if column >= len(heads) - words else ""

    head = "".join(f'<th scope="col" class="{kind(column)}">{title}</th>' for column, title in enumerate(heads))
    body = ""
    for class_, cells in rows:
        names = "".join(f'<th scope="row">{cell}</th>' for cell in cells[:named])
        rest = "".join(f'<td class="{kind(named + place)}">{cell}</td>' for place, cell in enumerate(cells[named:]))
        body += f'<tr class="{class_}">{names}{rest}</tr>'
    return (
        f'<div class="scroll" tabindex="0"><table class="figures"><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _amounts(figures: Figures) -> str:
    heads = (
        "Split",
        "Language",
        "Hours",
        "Utterances",
        "Speakers",
        "Words",
        "Characters",
        "Shortest",
        "Median",
        "Longest",
    )
    rows = [
        (
            "whole" if row["language"] == "all" else "",
            (
                row["split"],
                escape(row["language"]),
                _hours(row["hours"]),
                number(row["utterances"]),
                number(row["speakers"]) if row["speakers"] else "not named",
                number(row["words"]),
                number(row["characters"]),
                *(f"{value:.1f} s" for value in row["seconds"].values()),
            ),
        )
        for row in figures["amounts"]
    ]
    return _table(
        "Speakers are counted inside each row: one of two languages counts once in their sum.", heads, rows, 2
    )


def _histograms(figures: Figures) -> str:
    charts = "".join(_histogram(figures["histograms"][kind], kind) for kind in HISTOGRAMS)
    limits = figures["limits"]["characters_per_second"]
    rows = [
        ("", (escape(language), *(f"{row[name]:.1f}" for name in ("low", "median", "high"))))
        for language, row in limits.items()
    ]
    table = _table(
        f"Characters a second. What lies outside {figures['limits']['outlier']:g} robust standard deviations of the"
        " logarithm is suspected.",
        ("Language", "Suspected below", "Median", "Suspected above"),
        rows,
    )
    return f'<div class="pair">{charts}<div>{table if rows else ""}</div></div>'


def _histogram(histogram: Figures, kind: str) -> str:
    unit, caption = HISTOGRAMS[kind]
    totals = "; ".join(f"{language} {sum(bars)}" for language, bars in histogram["counts"].items())
    if histogram["open"]:
        beyond = sum(bars[-1] for bars in histogram["counts"].values())
        caption += f" The last bar, in another colour: {number(beyond)} beyond {histogram['edges'][-1]:g}."
    svg = histogram_chart(
        histogram, unit, name=kind.replace("_", "-"), label=f"Histogram of {unit}; utterances: {totals}"
    )
    return f"<figure>{svg}<figcaption>{caption} To the right, the utterances of the highest bar.</figcaption></figure>"


# letters


def _letters(figures: Figures) -> str:
    return "".join(_alphabet(language, row) for language, row in figures["alphabets"].items())


def _alphabet(language: str, row: Figures) -> str:
    strange = {each["character"]: each for each in (*row.get("strange", ()), *row.get("not_normalised", ()))}
    chips = "".join(
        f"<li{' class=strange' if character in strange else ''}>{_visible(character)}"
        f"<small>{number(occurrences)}</small></li>"
        for character, occurrences in row["characters"].items()
    )
    missing = f"<p class=legend>Never used: {escape(' '.join(row['missing']))}</p>" if row.get("missing") else ""
    rows = [
        (
            "",
            (
                f"{_visible(character)} {each['code']}",
                number(each["count"]),
                "<br>".join(_example(example, character) for example in each["examples"]),
            ),
        )
        for character, each in strange.items()
    ]
    heads = ("Outside the alphabet", "Times", "For example")
    table = _table("Characters that the rules of this language do not know.", heads, rows, words=1) if rows else ""
    return f'<h3>{escape(language)}</h3><ul class="alphabet">{chips}</ul>{missing}{table}'


def _example(example: Figures, character: str) -> str:
    text = escape(example["text"]).replace(escape(character), f"<mark>{_visible(character)}</mark>")
    return f"{text} <code>{escape(example['id'])}</code>"


def _visible(character: str) -> str:
    """What has no ink by its name."""
    if character == " ":
        return "space"
    if unicodedata.category(character)[0] in "CZ":
        return escape(unicodedata.name(character, f"U+{ord(character):04X}").lower())
    return f"◌{character}" if unicodedata.combining(character) else escape(character)


# what splits share


def _shared(figures: Figures) -> str:
    overlaps = figures["overlaps"]
    repeats = "; ".join(f"{split} {number(found)}" for split, found in overlaps["repeated_texts"].items())
    ids = overlaps["ids"]
    repeated = (
        f"<p>Ids that stand for more than one utterance: {number(ids['values'])}"
        f" {escape(', '.join(ids['examples']))}</p>"
    )
    return (
        _overlap("Texts", overlaps["texts"])
        + _overlap("Speakers", overlaps["speakers"])
        + f"{repeated}<p>Utterances whose text their own split has already: {repeats}.</p>"
    )


def _overlap(what: str, rows: Sequence[Figures]) -> str:
    if not rows:
        return f"<p>{what}: there is one split alone.</p>"
    columns = {"utterances": ("Utterances of each", number), "share": ("Share of each", percent)}
    if what == "Texts":
        columns["long"] = ("Of five words or more", number)
    body = [
        (
            "",
            (
                " ∩ ".join(row["splits"]),
                number(row["values"]),
                *(" / ".join(shown(row[key][split]) for split in row["splits"]) for key, (_, shown) in columns.items()),
            ),
        )
        for row in rows
    ]
    heads = ("Splits", what, *(title for title, _ in columns.values()))
    examples = "".join(_overlap_example(what, example) for row in rows for example in row["examples"])
    table = _table(f"{what} in two splits, and the utterances that have them.", heads, body)
    return table + (
        f'<details><summary>Examples</summary><ul class="notes">{examples}</ul></details>' if examples else ""
    )


def _overlap_example(what: str, example: Figures) -> str:
    shown = example["text"] if what == "Texts" else example["speaker"]
    names = ", ".join(f"{split}: {id_}" for split, id_ in example["ids"].items())
    return f"<li>{escape(shown)} <code>{escape(names)}</code></li>"


# recordings


def _recordings(figures: Figures) -> str:
    sample = figures["sample"]
    every = sample["decoded"] == sample["of"]
    which = "all of them" if every else f"a sample of {number(sample['of'])}, by seed {sample['seed']}"
    rows = [
        (
            "",
            (
                row["split"],
                escape(row["language"]),
                f"{number(row['decoded'])} of {number(row['of'])}",
                number(row["unreadable"]),
                _decibels(row["level"], "dBFS"),
                "–" if row["peak"] is None else f"{row['peak']:.2f}",
                _decibels(row["range"], "dB"),
            ),
        )
        for row in figures["levels"]
    ]
    heads = ("Split", "Language", "Decoded", "Unreadable", "Level", "Peak", "Loud over quiet")
    caption = (
        "Medians over recordings. Loud over quiet: between the 95th and the 5th percentile of the levels of frames"
        " of 20 ms."
    )
    judged = "; ".join(f"{title} ({text})" for title, text in figures["limits"]["sound"].items())
    return (
        f"<p>{count(sample['decoded'], 'recording')} decoded: {which}. Suspected: {escape(judged)}.</p>"
        + _table(caption, heads, rows, 2)
        + _scores(figures)
    )


def _scores(figures: Figures) -> str:
    if not figures["checkpoint"]:
        return ""
    rows = [
        ("", (escape(language), number(row["of"]), f"{row['median']:.2f}", f"{row['low']:.2f}"))
        for language, row in figures["limits"]["nats_per_character"].items()
    ]
    caption = (
        f"Log posterior of the transcript by the CTC head of {escape(figures['checkpoint'])}, in nats a character."
        f" Below the limit of {figures['limits']['outlier']:g} robust standard deviations it is suspected."
    )
    return _table(caption, ("Language", "Scored", "Median", "Suspected below"), rows)


def _suspects(figures: Figures, sources: Mapping[int, str]) -> str:
    parts = []
    for kind, words in KINDS.items():
        found = figures["suspects"][kind]
        if found["count"]:
            shown = "" if found["count"] == len(found["worst"]) else f", the worst {len(found['worst'])} of them"
            parts.append(f"<h3>{words.title}: {number(found['count'])}{shown}</h3>{_players(found['worst'], sources)}")
    judged = [kind for kind in KINDS if kind != "ctc" or figures["checkpoint"]]
    none = [KINDS[kind].title.lower() for kind in judged if not figures["suspects"][kind]["count"]]
    rest = f'<p class="legend">None: {escape(", ".join(none))}.</p>' if none else ""
    seconds = f"<p>Players hold the first {figures['players']['seconds']:g} seconds at most.</p>" if parts else ""
    return seconds + "".join(parts) + rest


def _picked(figures: Figures, sources: Mapping[int, str]) -> str:
    rows = figures["picked"]
    return f"<p>One of each split and language, by seed {figures['sample']['seed']}.</p>{_players(rows, sources)}"


def _players(rows: Sequence[Figures], sources: Mapping[int, str]) -> str:
    body = "".join(_player(row, sources) for row in rows)
    return f'<div class="scroll" tabindex="0"><table class="suspects">{body}</table></div>'


def _player(row: Figures, sources: Mapping[int, str]) -> str:
    source = sources.get(row["utterance"])
    audio = (
        f'<audio controls preload="metadata" src="{source}" aria-label="{escape(row["id"])}"></audio>'
        if source
        else '<span class="flag">cannot be played</span>'
    )
    heard = f'<p class="where">the model hears: {escape(row["heard"])}</p>' if row.get("heard") is not None else ""
    reason = f'<p class="why">{escape(row["reason"])}</p>' if row["reason"] else ""
    place = (
        f"{row['id']} · {row['split']} · {row['language']} · {row['speaker']} · {row['seconds']:.1f} s · {row['path']}"
    )
    text = escape(row["text"]) or "<i>no transcript</i>"
    return (
        f'<tr><td>{audio}</td><td><p class="said" lang="{escape(row["language"])}">{text}</p>{reason}{heard}'
        f'<p class="where">{escape(place)}</p></td></tr>'
    )


# the rest


def _quarantine(figures: Figures) -> str:
    rows = [
        (
            "",
            (
                escape(row["kind"]),
                number(row["count"]),
                escape(", ".join(f"{split} {number(found)}" for split, found in row["splits"].items())),
                f"<code>{escape(row['example'][0])}</code> {escape(row['example'][1])}",
            ),
        )
        for row in figures["quarantine"]
    ]
    if not rows:
        return "<p>quarantine.tsv is empty or absent.</p>"
    return _table("From quarantine.tsv.", ("Reason", "Utterances", "Splits", "For example"), rows, words=2)


def _reproduce(figures: Figures) -> str:
    command = shlex.join([Path(figures["command"][0]).name, *figures["command"][1:]])
    return (
        f"<pre><code>{escape(command)}</code></pre><p>All figures are in {escape(figures['json'])}. Texts, ids and"
        " speakers are compared by hashes of 64 bits.</p>"
    )


def _hours(hours: float) -> str:
    return f"{hours:,.1f}".replace(",", "\u202f") if hours >= 10 else f"{hours:.2f}"


def _decibels(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.0f} {unit}".replace("-", "−")
