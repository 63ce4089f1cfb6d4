"""`speechllm data report`: one HTML page about prepared data, and its figures as JSON."""

import contextlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut

from speechllm_pl.analysis.data import figures as data_figures
from speechllm_pl.analysis.data.audio_measures import LIMITS, player_source
from speechllm_pl.analysis.data.findings import findings, notes
from speechllm_pl.analysis.data.listening import Heard, drawn, listen
from speechllm_pl.analysis.data.prepared_data import (
    SPLITS,
    PreparedData,
    judged_by_letters,
    open_splits,
    read_through,
    transcript,
)
from speechllm_pl.analysis.data.suspects import OUTLIER, Found, suspects
from speechllm_pl.analysis.html.data_page import data_page
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.progress import progress_bar
from speechllm_pl.data.utterance import read
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.whole_file import write_whole


def data_report(
    root: str,
    checkpoint: str | None = None,
    output: str | None = None,
    sample: int = 4000,
    seed: int = 0,
    worst: int = 20,
    player_seconds: float = 15.0,
    max_duration: float = 60.0,
    device: str = "cpu",
    llm: str | None = None,
    allow_command_sources: bool = False,
) -> None:
    """Write an HTML page about prepared data, with players, and its figures as JSON beside it.

    All transcripts are read twice; recordings are decoded in a sample. By its speed on smaller corpora, twelve million
    utterances take about half an hour and 2.5 GB of memory.

    Args:
        root: folder of train, dev and test manifests, as `make data` leaves it.
        checkpoint: of either stage; its CTC head compares transcripts with recordings.
        output: the page; default is report.html in `root`. The figures stand beside it, with the suffix .json.
        sample: recordings to decode, as many of each split and language; all, where there are fewer.
        seed: of the sample.
        worst: utterances to show of each kind of fault.
        player_seconds: audio that a player holds at most; a second is some 4 kB of the page.
        max_duration: seconds of audio in a batch for the checkpoint.
        device: where the checkpoint computes: cpu, cuda, cuda:1.
        llm: folder or name of the LLM, where it has moved since training.
        allow_command_sources: run the shell commands and open the addresses that the manifests name instead of files;
            for manifests that you trust.
    """
    if sample < 1 or worst < 0 or seed < 0 or not player_seconds > 0 or not max_duration > 0:
        raise UserError("sample, player_seconds and max_duration must be above 0, worst and seed 0 or more")
    path = Path(output) if output else Path(root, "report.html")
    recognizer = Recognizer.load(checkpoint, llm, device) if checkpoint else None
    data, letters = read_through(open_splits(Path(root), allow_commands=allow_command_sources))
    ahead = judged_by_letters(data, letters)
    heard = listen(data, drawn(data, sample, seed), recognizer, max_duration)
    found, limits = suspects(data, letters, ahead, heard, worst)
    figures = {
        "root": root,
        "absent": [split for split in SPLITS if split not in data.splits],
        "checkpoint": checkpoint,
        "sample": {"seed": seed, "asked": sample, "decoded": len(heard), "of": len(data)},
        "players": {"seconds": player_seconds},
        "amounts": data_figures.amounts(data),
        "histograms": data_figures.histograms(data),
        "alphabets": data_figures.alphabets(data),
        "letters": {"languages": letters.languages()},
        "overlaps": data_figures.overlaps(data),
        "levels": data_figures.levels(data, heard),
        "suspects": {kind: _listed(data, heard, each) for kind, each in found.items()},
        "limits": {"outlier": OUTLIER, "sound": LIMITS, **limits},
        "picked": [_described(data, heard, utterance, "") for utterance in _one_of_each(data, seed)],
        "quarantine": data_figures.quarantine(Path(root)),
        "command": sys.argv,
        "json": path.with_suffix(".json").name,
    }
    figures |= {"findings": findings(figures), "notes": notes(figures)}
    content = json.dumps(figures, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    write_whole(path.with_suffix(".json"), content.encode())
    write_whole(path, data_page(figures, _sources(data, figures, player_seconds)).encode())
    for each in figures["findings"]:
        print(each["text"])
    print(f"report: {path} ({len(figures['findings'])} findings, figures in {path.with_suffix('.json')})")


def _listed(data: PreparedData, heard: Mapping[int, Heard], found: Found) -> dict[str, Any]:
    worst = [_described(data, heard, each.utterance, each.reason, each.badness) for each in found.worst]
    return {"count": found.count, "worst": worst}


def _described(
    data: PreparedData, heard: Mapping[int, Heard], utterance: int, reason: str, badness: float = 0.0
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
    """Of its audio file, or of what holds it; empty where nothing says."""
    recording = getattr(cut, "recording", None)
    source = recording.sources[0].source if recording and recording.sources else ""
    return source if isinstance(source, str) else ""  # in shards, the bytes themselves


def _one_of_each(data: PreparedData, seed: int) -> list[int]:
    """An utterance of each split and language."""
    random = np.random.default_rng(seed)
    groups = (
        np.flatnonzero(data.in_split(split) & data.in_language(language))
        for split in data.splits
        for language in sorted(data.languages)
    )
    return [int(random.choice(members)) for members in groups if len(members)]


def _sources(data: PreparedData, figures: Mapping[str, Any], seconds: float) -> dict[int, str]:
    """Of every utterance that the page lists and that can be read, its recording."""
    rows = [row for each in figures["suspects"].values() for row in each["worst"]] + figures["picked"]
    utterances = sorted({row["utterance"] for row in rows})
    found = {}
    with progress_bar("players", len(utterances), unit=" recordings") as bar:
        for utterance in utterances:
            with contextlib.suppress(Exception):  # of whatever decoder; the page says so where the player would be
                found[utterance] = player_source(read(data.cut(utterance)), seconds)
            bar.update()
    return found
