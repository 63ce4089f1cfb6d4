"""What the JSON of a Lhotse cut must hold: Lhotse takes values of any type, and what that leads to comes much later."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from speechllm_pl.core.errors import UserError

LONGEST_SECONDS = 1_000_000
"""Of a recording: eleven days. What is said to last longer would be planned for, whatever the file has."""

MOST_SAMPLES = 10**12
"""Of a recording, and in a second: what is said to have more would be planned for, too."""

INEXACT_SECONDS = 0.1
"""By which a recording's length and its number of samples may differ: headers of MP3 files leave so much open."""

TEXTS = ("text", "language", "speaker", "gender")
"""What a supervision may lack, and else is a text."""


def wrong_field(cut: Any) -> str:
    """What in the JSON of a cut is of a wrong type or cannot be, in words; empty if nothing is."""
    return next(_faults(cut), "")


def _faults(cut: Any) -> Iterator[str]:
    if not isinstance(cut, dict):
        yield "it is no JSON object"
        return
    yield from _names(cut, "id")
    for track in _dicts(cut.get("tracks")):
        yield from (f"in a track {fault}" for fault in _faults(track.get("cut")))
    yield from _seconds(cut, "start")
    yield from _seconds(cut, "duration")
    for supervision in _dicts(cut.get("supervisions")):
        for name in TEXTS:
            if not isinstance(supervision.get(name), str | None):
                yield f"{name} is {_shown(supervision[name])}, which is no text"
    if isinstance(recording := cut.get("recording"), dict):
        yield from _faults_of_recording(recording)
    if not _is_unicode(cut):
        yield "it has half of a surrogate pair, which no text can hold"


def _faults_of_recording(recording: dict) -> Iterator[str]:
    yield from (f"its recording's {fault}" for fault in _names(recording, "id"))
    yield from (f"its recording's {fault}" for fault in _seconds(recording, "duration"))
    for name in ("sampling_rate", "num_samples"):
        if not _is_number(recording.get(name)) or not 0 < recording[name] <= MOST_SAMPLES:
            yield f"its recording's {name} is {_shown(recording.get(name))}, which is no number of samples"
            return
    if not agree(recording):
        seconds, samples, rate = (recording[name] for name in ("duration", "num_samples", "sampling_rate"))
        yield f"its recording lasts {seconds:g} s, but has {samples:g} samples at {rate:g} Hz"


def agree(recording: dict) -> bool:
    """Whether a recording has as many samples as its length and its sampling rate say."""
    return abs(recording["num_samples"] / recording["sampling_rate"] - recording["duration"]) <= INEXACT_SECONDS


def refuse_repeated(ids: np.ndarray, path: Path) -> None:
    """
    Args:
        ids: `(N,)` int64 hashes of the ids of a manifest's lines.

    Raises:
        UserError: names the first line whose id an earlier line has, and that one.
    """
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(again):
        place = again[order[again + 1].argmin()]
        first, second = order[place : place + 2] + 1
        raise UserError(f"{path}, line {second}: has the id of line {first}: give every cut an id of its own")


def _names(item: dict, name: str) -> Iterator[str]:
    if not isinstance(item.get(name), str) or not item[name]:
        yield f"{name} is {_shown(item.get(name))}, which is no name"


def _seconds(item: dict, name: str) -> Iterator[str]:
    """Kinds of cuts differ in what they have."""
    value = item.get(name, 0)
    if not _is_number(value) or not 0 <= value <= LONGEST_SECONDS:
        yield f"{name} is {_shown(value)}, which is no number of seconds"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dicts(items: Any) -> Iterable[dict]:
    return (item for item in items if isinstance(item, dict)) if isinstance(items, list) else ()


def _is_unicode(item: Any) -> bool:
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
