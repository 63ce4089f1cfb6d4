"""Entries of a corpus's listing: utterances, and rejections in the place of those that cannot be used."""

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Utterance:
    """One transcribed stretch of a recording, from `start` to `end` seconds (None: to its end)."""

    id: str
    path: Path | str
    text: str
    language: str  # ISO 639-1
    speaker: str
    split: str
    start: float = 0.0
    end: float | None = None
    gender: str = ""  # male or female; empty where the corpus does not say
    subset: str = ""  # the corpus's own name for a part of a split
    source: str = ""  # table and line that it comes from


LABELS = ("gender", "subset", "source")
"""Fields of an `Utterance` that say nothing of its sound or text."""


@dataclass(frozen=True)
class Rejection:
    """One line of the quarantine file. What stands before the first colon of `reason` is its kind."""

    split: str
    id: str
    path: str
    reason: str
    source: str = ""


def rejection(utterance: Utterance, reason: str) -> Rejection:
    return Rejection(utterance.split, utterance.id, str(utterance.path), reason, utterance.source)
