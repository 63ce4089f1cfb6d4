"""Checks of the fields of a Lhotse cut in JSON: Lhotse accepts values of any type, and they fail much later."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from speechllm_pl.core.errors import UserError

LONGEST_SECONDS = 1_000_000
"""Largest duration of a recording, eleven days. Batches are planned by the manifest's duration, not the file's."""

MOST_SAMPLES = 10**12
"""Largest number of samples of a recording, and largest sampling rate."""

INEXACT_SECONDS = 0.1
"""Difference allowed between a recording's duration and its samples, as headers of MP3 files are inexact."""

TEXT_ALONE = "text_alone"
"""Custom field, true in a cut that is a text without audio."""

TEXTS = ("text", "language", "speaker", "gender")
"""Fields of a supervision that are strings or absent."""


def wrong_field(cut: Any) -> str:
    """Describe the first field of a cut in JSON with a wrong type or an impossible value; empty if there is none."""
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
    """Whether a recording's number of samples agrees with its duration and sampling rate."""
    return abs(recording["num_samples"] / recording["sampling_rate"] - recording["duration"]) <= INEXACT_SECONDS


def refuse_repeated(ids: np.ndarray, manifest: str) -> None:
    """Refuse a manifest in which two lines have the same id.

    Args:
        ids: `(N,)` int64 hashes of the ids of a manifest's lines.

    Raises:
        UserError: names the first line whose id an earlier line has, and that line.
    """
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(again):
        place = again[order[again + 1].argmin()]
        first, second = order[place : place + 2] + 1
        raise UserError(f"{manifest}, line {second}: has the id of line {first}: give every cut an id of its own")


def _names(item: dict, name: str) -> Iterator[str]:
    if not isinstance(item.get(name), str) or not item[name]:
        yield f"{name} is {_shown(item.get(name))}, which is no name"


def _seconds(item: dict, name: str) -> Iterator[str]:
    """Check a number of seconds; kinds of cuts differ in which they have."""
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
