"""Augmentation that joins utterances of a batch."""

from dataclasses import dataclass

import numpy as np

from speechllm_pl.core.audio.units import SAMPLING_RATE, samples_in
from speechllm_pl.data.augmentation.perturbation import Augmentation, Generators
from speechllm_pl.data.utterance import Utterance


@dataclass(frozen=True, kw_only=True)
class Concatenate(Augmentation):
    """Joins utterances of one language in a batch, and their texts, to fewer and longer rows.

    A batch stays as it is if, with padding, it would grow beyond `room`: rows without a partner of their language are
    padded to the length of those with one. Nothing is dropped or cut off. The result does not depend on ranks, workers
    or resuming, since the composition of batches does not.

    Args:
        probability: Share of the batches whose utterances are joined.
        max_seconds: Seconds of the longest joined utterance.
        pause_seconds: Seconds of silence between two utterances. From 0.2 s on CTC has one frame more than for the two
            apart, as it needs if the second begins with the token with which the first ended.
        room: Factor by which a batch may grow, padding included; batches are planned shorter by it.
    """

    max_seconds: float = 30.0
    pause_seconds: float = 0.2
    room: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.max_seconds > 0:
            raise self._error(f"max_seconds {self.max_seconds} must be above 0")
        if not 0.2 <= self.pause_seconds <= 10:
            raise self._error(f"pause_seconds {self.pause_seconds} is not within 0.2 … 10")
        if not 1 <= self.room <= 3:
            raise self._error(f"room {self.room} is not within 1 … 3")

    @property
    def duration_factor(self) -> float:
        return self.room

    def apply(self, utterances: list[Utterance], generators: Generators) -> list[Utterance]:
        generator = generators(
            "+".join(utterance.id for utterance in utterances), sum(each.copy for each in utterances)
        )
        if len(utterances) < 2 or generator.random() >= self.probability:
            return utterances
        shuffled = [utterances[i] for i in generator.permutation(len(utterances))]
        longest = max(len(utterance.samples) for utterance in utterances)
        allowed = self.room * len(utterances) * longest
        allowed_text = self.room * len(utterances) * max(len(utterance.text) for utterance in utterances)
        most = min(len(utterances), int(self.max_seconds * SAMPLING_RATE / longest))
        for pieces in range(int(generator.integers(2, max(most, 2) + 1)), 1, -1):
            rows = self._rows(shuffled, pieces)
            fits = len(rows) * max(map(self._length, rows)) <= allowed
            if fits and len(rows) < len(utterances) and len(rows) * max(map(_characters, rows)) <= allowed_text:
                return [self._joined(row) for row in rows]
        return utterances

    def _rows(self, utterances: list[Utterance], pieces: int) -> list[list[Utterance]]:
        """Choose utterances to join: at most `pieces` of one language, together at most `max_seconds` long."""
        rows: list[list[Utterance]] = []
        unfinished: dict[str, list[Utterance]] = {}
        for utterance in utterances:
            row = unfinished.get(utterance.language, [])
            too_long = self._length([*row, utterance]) > self.max_seconds * SAMPLING_RATE
            if not row or len(row) == pieces or too_long:
                row = unfinished[utterance.language] = []
                rows.append(row)
            row.append(utterance)
        return rows

    @property
    def _pause(self) -> int:
        return samples_in(self.pause_seconds)

    def _length(self, row: list[Utterance]) -> int:
        """Length of the joined row in samples."""
        return sum(len(utterance.samples) for utterance in row) + (len(row) - 1) * self._pause

    def _joined(self, row: list[Utterance]) -> Utterance:
        if len(row) == 1:
            return row[0]
        silence = np.zeros(self._pause, np.float32)
        parts = [part for utterance in row for part in (silence, utterance.samples)][1:]
        id_ = "+".join(utterance.id for utterance in row)
        text = " ".join(utterance.text for utterance in row if utterance.text)
        drawn = (*(words for utterance in row for words in utterance.drawn), f"{len(row)} utterances joined")
        return Utterance(id_, np.concatenate(parts), text, row[0].language, drawn=drawn)


def _characters(row: list[Utterance]) -> int:
    """Characters of the transcripts; spaces between them are part of the tokens that follow."""
    return sum(len(utterance.text) for utterance in row)
