"""Read a run folder: learning curves, times, scores, hypotheses, the record of the environment.

Every part may be missing, since unfinished runs are reported as well.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from speechllm_pl.configuration.bounded_yaml import read_configuration
from speechllm_pl.core.errors import UserError

STAGES = ("pretrain_ctc", "finetune")
"""Folders of the two stages inside a run."""

SYSTEMS = ("ctc", "llm")
"""Systems of the two stages, in their order, as scores and hypotheses name them."""

Curve = list[tuple[int, float]]
"""(optimiser step, value), by step."""


@dataclass(frozen=True)
class StageFolder:
    """Content of one stage's folder."""

    name: str
    curves: dict[str, Curve]
    """By TensorBoard tag."""
    seconds: float
    """Wall time of all starts, each from its beginning to its last event; work repeated after resuming included."""
    environment: dict[str, Any]
    """environment.json, or empty."""
    finished: dict[str, Any]
    """finished.json, or empty when the stage has not run to its end."""
    checkpoint: Path
    """Where the best checkpoint is, if there is one."""


@dataclass(frozen=True)
class Run:
    """Content of a run folder, as far as it exists."""

    folder: Path
    stages: dict[str, StageFolder]
    scores: dict[str, Any]
    hypotheses: list[dict[str, Any]]


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: no such folder, nothing of a run in it, or a broken file.
    """
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist: make one with `make demo`, or correct --run")
    stages = {name: read_stage(folder / name) for name in STAGES if (folder / name / "logs").is_dir()}
    scores = folder / "scores.json"
    if not stages and (folder / "logs").is_dir():
        raise UserError(f"{folder} is one stage of a run: give the folder above it with --run")
    if not stages and not scores.is_file():
        wanted = ", ".join((*STAGES, scores.name))
        raise UserError(f"run folder {folder} has nothing to report ({wanted}): train first (`make demo`)")
    listing = folder / "hypotheses.jsonl"
    lines = listing.read_text().removesuffix("\n").split("\n") if listing.is_file() else []
    hypotheses = [_parsed(line, f"{listing}, line {number}") for number, line in enumerate(lines, start=1)]
    return Run(folder, stages, _read_json(scores), hypotheses)


def read_stage(folder: Path) -> StageFolder:
    """Read one stage's folder."""
    curves, seconds = read_events(folder / "logs")
    return StageFolder(
        folder.name,
        curves,
        seconds,
        _read_json(folder / "environment.json"),
        _read_json(folder / "finished.json"),
        folder / "checkpoints" / "best.ckpt",
    )


def read_events(folder: Path) -> tuple[dict[str, Curve], float]:
    """Read the scalars of a folder of event files by tag, and the wall time of all starts in seconds.

    Every start writes its own file. A resumed start continues from the last checkpoint: from its first step on its
    values replace those of earlier starts.
    """
    curves: dict[str, Curve] = {}
    seconds = 0.0
    for began, events in sorted(_starts(folder), key=lambda start: start[0]):
        first_step = min(points[0].step for points in events.values())
        for tag, points in events.items():
            kept = [point for point in curves.get(tag, []) if point[0] < first_step]
            curves[tag] = kept + [(point.step, point.value) for point in points]
        seconds += max(points[-1].wall_time for points in events.values()) - began
    return curves, seconds


def _starts(folder: Path) -> Iterator[tuple[float, dict[str, list[Any]]]]:
    """Time at which each start of a training began, and its scalar events by tag."""
    for path in folder.glob("events.out.tfevents.*"):
        start = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
        start.Reload()
        events = {tag: start.Scalars(tag) for tag in start.Tags()["scalars"]}
        if any(tag.startswith("train/") for tag in events):  # else it only tested, or ended before it logged
            yield start.FirstEventTimestamp() or 0.0, events


def manifest_of_tests(folder: Path) -> Path | None:
    """Manifest of test cuts named by the configuration in a stage's folder."""
    config = folder / "config.yaml"
    if not config.is_file():
        return None
    data = read_configuration(config).get("data") or {}
    return Path(data["root"], data["test"]) if {"root", "test"} <= set(data) else None


def _read_json(path: Path) -> dict[str, Any]:
    return _parsed(path.read_text(), str(path)) if path.is_file() else {}


def _parsed(text: str, place: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is not JSON ({error}): delete it and run the step that wrote it again") from error
