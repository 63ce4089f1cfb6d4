"""Figures about prepared data as plain values: the content of `report.json` and of the page."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from speechllm_pl.analysis.data.listening import HeardRecording
from speechllm_pl.analysis.data.prepared_data import EXAMPLES, PreparedData, transcript
from speechllm_pl.core.languages import LANGUAGES
from speechllm_pl.core.text import strange_characters

BARS = 40
"""Largest number of bars in a histogram."""

STEPS = (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Widths of bars to choose from; powers of ten of them as well."""

LONG_TEXT = 5
"""Number of words from which two equal texts are hardly a coincidence."""

LISTED = 10
"""Number of examples listed for texts and speakers in two splits."""


def amounts(data: PreparedData) -> list[dict[str, Any]]:
    """Amounts of data: a row for each split and language present, and one for each whole split."""
    rows = []
    for split in data.splits:
        rows += [_amount(data, mask, split, language) for of, language, mask in data.groups() if of == split]
        rows.append(_amount(data, data.in_split(split), split, "all"))
    return rows


def _amount(data: PreparedData, chosen: np.ndarray, split: str, language: str) -> dict[str, Any]:
    seconds, speakers = data.seconds[chosen], data.speaker[chosen]
    spread = map(float, np.percentile(seconds, (0, 50, 100)))
    return {
        "split": split,
        "language": language,
        "utterances": len(seconds),
        "hours": float(seconds.sum(dtype=np.float64)) / 3600,
        "speakers": len(np.unique(speakers[speakers != 0])),
        "without_speaker": int(np.count_nonzero(speakers == 0)),
        "words": int(data.words[chosen].sum()),
        "characters": int(data.characters[chosen].sum()),
        "seconds": dict(zip(("shortest", "median", "longest"), spread, strict=True)),
    }


# histograms


def histograms(data: PreparedData) -> dict[str, Any]:
    """Histograms by language over all splits: durations, and speaking rates of utterances with a text."""
    spoken = data.characters > 0
    seconds = np.maximum(data.seconds, 1e-3)
    return {
        "seconds": histogram(data, data.seconds, np.ones(len(data), bool)),
        "characters_per_second": histogram(data, data.characters / seconds, spoken),
        "words_per_minute": histogram(data, 60 * data.words / seconds, spoken),
    }


def histogram(data: PreparedData, values: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Counts by language between common `edges`.

    When `open`, the last count is of all values beyond the last edge.
    """
    edges = _edges(values[chosen])
    beyond = bool(chosen.any() and values[chosen].max() > edges[-1])
    bounds = np.r_[edges, np.inf] if beyond else edges
    counts = {
        language: np.histogram(values[chosen & data.in_language(language)], bounds)[0].tolist()
        for language in sorted(data.languages)
    }
    return {"edges": edges.tolist(), "open": beyond, "counts": counts}


def _edges(values: np.ndarray) -> np.ndarray:
    """Even steps from 0 to the 99.9th percentile of the values."""
    most = float(np.percentile(values, 99.9)) if len(values) else 1.0
    widths = (step * 10**power for power in range(6) for step in STEPS)
    width = next(width for width in widths if most <= BARS * width)
    return width * np.arange(math.floor(most / width) + 2)


# letters


def alphabets(data: PreparedData) -> dict[str, dict[str, Any]]:
    """Character counts of each language, and the characters outside its alphabet with example utterances."""
    found = {}
    for language in sorted(data.languages):
        counts = data.counts[language]
        row: dict[str, Any] = {"characters": dict(counts.most_common()), "judged": language in LANGUAGES}
        if language in LANGUAGES:
            known = LANGUAGES[language]
            unknown = [character for character, _ in counts.most_common() if character not in known.known_characters]
            strange = [character for character in unknown if strange_characters(character, language)]
            removable = [character for character in unknown if character not in strange]
            row["strange"] = [_character(data, language, character) for character in strange]
            row["not_normalised"] = [_character(data, language, character) for character in removable]
            row["missing"] = "".join(letter for letter in known.letters if letter not in counts)
        found[language] = row
    return found


def _character(data: PreparedData, language: str, character: str) -> dict[str, Any]:
    return {
        "character": character,
        "code": f"U+{ord(character):04X}",
        "count": data.counts[language][character],
        "examples": [_named(data, utterance) for utterance in data.examples[language, character][:EXAMPLES]],
    }


def _named(data: PreparedData, utterance: int) -> dict[str, Any]:
    cut = data.cut(utterance)
    return {"id": cut.id, "split": data.split_of(utterance), "text": transcript(cut)}


# what is in two places


def overlaps(data: PreparedData) -> dict[str, Any]:
    """Count texts and speakers shared by two splits, ids that occur twice, and texts repeated inside a split."""
    pairs = list(combinations(data.splits, 2))
    return {
        "texts": [_shared(data, data.text, pair) for pair in pairs],
        "speakers": [_shared(data, data.speaker, pair) for pair in pairs],
        "ids": _repeated_ids(data),
        "repeated_texts": {split: _repeats(data.text[data.in_split(split)]) for split in data.splits},
    }


def _shared(data: PreparedData, column: np.ndarray, pair: tuple[str, str]) -> dict[str, Any]:
    """Count the values of a column of hashes that both splits contain, and their utterances in each split."""
    inside = {split: data.in_split(split) & (column != 0) for split in pair}
    common = np.intersect1d(column[inside[pair[0]]], column[inside[pair[1]]])
    touched = {split: inside[split] & np.isin(column, common) for split in pair}
    utterances = {split: int(np.count_nonzero(touched[split])) for split in pair}
    return {
        "splits": list(pair),
        "values": len(common),
        "utterances": utterances,
        "share": {split: count / len(data.splits[split]) for split, count in utterances.items()},
        "long": {split: int(np.count_nonzero(touched[split] & (data.words >= LONG_TEXT))) for split in pair},
        "examples": _examples_of_both(data, column, touched),
    }


def _examples_of_both(data: PreparedData, column: np.ndarray, touched: Mapping[str, np.ndarray]) -> list[Any]:
    """Utterances of both splits for up to `LISTED` shared values, the longest texts first."""
    first, second = touched.values()
    rows = np.flatnonzero(second)
    rows = rows[np.argsort(-data.characters[rows].astype(np.int64), kind="stable")]
    _, once = np.unique(column[rows], return_index=True)
    chosen = rows[np.sort(once)[:LISTED]]
    found = []
    for row in chosen:
        partner = int(np.argmax(first & (column == column[row])))
        names = {data.split_of(utterance): data.cut(utterance).id for utterance in (partner, int(row))}
        cut = data.cut(int(row))
        found.append({"ids": names, "text": transcript(cut), "speaker": cut.supervisions[0].speaker})
    return found


def _repeated_ids(data: PreparedData) -> dict[str, Any]:
    _, first, counts = np.unique(data.id, return_index=True, return_counts=True)
    again = counts > 1
    examples = [data.cut(int(utterance)).id for utterance in first[again][:LISTED]]
    return {"values": int(again.sum()), "utterances": int(counts[again].sum()), "examples": examples}


def _repeats(hashes: np.ndarray) -> int:
    """Number of utterances whose text an earlier utterance of the split already has."""
    hashes = hashes[hashes != 0]
    return len(hashes) - len(np.unique(hashes))


# recordings


def levels(data: PreparedData, heard: Mapping[int, HeardRecording]) -> list[dict[str, Any]]:
    """Decoded recordings and the medians of their measures, a row for each split and language."""
    rows = []
    for split, language, mask in data.groups():
        decoded = [each for utterance, each in heard.items() if mask[utterance]]
        measured = [each.measures for each in decoded if each.measures]
        row = {"split": split, "language": language, "of": int(mask.sum()), "decoded": len(decoded)}
        row["unreadable"] = len(decoded) - len(measured)
        row["level"] = _median(each.level for each in measured)
        row["peak"] = _median(each.peak for each in measured)
        row["range"] = _median(each.range for each in measured if not math.isnan(each.range))
        rows.append(row)
    return [row for row in rows if row["decoded"]]


def _median(values: Iterable[float]) -> float | None:
    listed = list(values)
    return float(np.median(listed)) if listed else None


# what did not get in


def quarantine(root: Path) -> list[dict[str, Any]]:
    """Utterances that preparation rejected: counts by split and an example of each reason, most frequent first."""
    found: dict[str, dict[str, Any]] = {}
    for path in (root / "quarantine.tsv", *sorted(root.glob("parts/*/quarantine.tsv"))):
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for line in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                kind, example = line["reason"].split(":")[0], (line["id"], line["reason"])
                row = found.setdefault(kind, {"kind": kind, "count": 0, "splits": Counter(), "example": example})
                row["count"] += 1
                row["splits"][line["split"]] += 1
    return sorted(found.values(), key=lambda row: -row["count"])
