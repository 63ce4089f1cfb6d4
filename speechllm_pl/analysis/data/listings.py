"""Utterances as `report.json` lists them, and their recordings as the page plays them."""

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from lhotse.cut import Cut

from speechllm_pl.analysis.data.audio_measures import player_source
from speechllm_pl.analysis.data.listening import HeardRecording
from speechllm_pl.analysis.data.prepared_data import PreparedData, transcript
from speechllm_pl.analysis.data.suspects import Found
from speechllm_pl.data.utterance import read
from speechllm_pl.storage.progress import progress_bar


def list_suspects(data: PreparedData, heard: Mapping[int, HeardRecording], found: Found) -> dict[str, Any]:
    """Number of suspects of one kind, and rows of the worst."""
    worst = [_row(data, heard, each.utterance, each.reason, each.badness) for each in found.worst]
    return {"count": found.count, "worst": worst}


def list_one_of_each(data: PreparedData, heard: Mapping[int, HeardRecording], seed: int) -> list[dict[str, Any]]:
    """Rows of a random utterance of each split and language."""
    random = np.random.default_rng(seed)
    return [_row(data, heard, int(random.choice(np.flatnonzero(mask))), "") for *_, mask in data.groups()]


def players(data: PreparedData, rows: Iterable[Mapping[str, Any]], seconds: float) -> dict[int, str]:
    """`data:` URIs of the first `seconds` of the recordings of `rows`, by utterance, without unreadable ones."""
    utterances = sorted({row["utterance"] for row in rows})
    found = {}
    with progress_bar("players", len(utterances), unit=" recordings") as bar:
        for utterance in utterances:
            with contextlib.suppress(Exception):  # of whatever decoder; the page says so where the player would be
                found[utterance] = player_source(read(data.cut(utterance)), seconds)
            bar.update()
    return found


def _row(
    data: PreparedData, heard: Mapping[int, HeardRecording], utterance: int, reason: str, badness: float = 0.0
) -> dict[str, Any]:
    cut = data.cut(utterance)
    known = heard.get(utterance)
    return {
        "utterance": utterance,
        "id": cut.id,
        "split": data.split_of(utterance),
        "language": data.language_of(utterance),
        "speaker": cut.supervisions[0].speaker or "unknown",
        "seconds": cut.duration,
        "text": transcript(cut),
        "path": _path(cut),
        "reason": reason,
        "badness": badness if math.isfinite(badness) else None,
        "heard": known.score.heard if known and known.score else None,
    }


def _path(cut: Cut) -> str:
    """Path of the audio file or of what holds it; empty if unknown."""
    recording = getattr(cut, "recording", None)
    source = recording.sources[0].source if recording and recording.sources else ""
    return source if isinstance(source, str) else ""  # in shards, the bytes themselves
