"""Decode a sample of the recordings of prepared data, measure them, and score their transcripts with a model."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from lhotse.cut import Cut

from speechllm_pl.analysis.data.audio_measures import Measures, measure
from speechllm_pl.analysis.data.prepared_data import PreparedData
from speechllm_pl.analysis.data.transcript_scores import TranscriptScore, transcript_scores
from speechllm_pl.data.dataset import collate
from speechllm_pl.data.utterance import Utterance, read_utterance
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.progress import progress_bar


class HeardRecording(NamedTuple):
    """Measures and score of one recording."""

    measures: Measures | None  # None: it cannot be read
    error: str
    score: TranscriptScore | None  # None: without a model, or it cannot be read


def drawn(data: PreparedData, size: int, seed: int) -> np.ndarray:
    """Draw a sample of utterances, `(n,)` in order with n at most `size`.

    Every split and language has equally many, or all that it has: a small language, or the test set of a large corpus,
    would hardly be in a proportional sample.
    """
    if len(data) <= size:
        return np.arange(len(data))
    random = np.random.default_rng(seed)
    group = data.split.astype(np.int64) * len(data.languages) + data.language
    groups = [np.flatnonzero(group == number) for number in np.unique(group)]
    quotas = _quotas([len(members) for members in groups], size)
    chosen = [random.choice(members, quota, replace=False) for members, quota in zip(groups, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))


def _quotas(available: list[int], size: int) -> list[int]:
    """Divide `size` among the groups as equally as their sizes allow."""
    quotas = [0] * len(available)
    left = size
    smallest_first = sorted(range(len(available)), key=lambda number: available[number])
    for place, number in enumerate(smallest_first):
        quotas[number] = min(available[number], left // (len(available) - place))
        left -= quotas[number]
    return quotas


def listen(
    data: PreparedData, utterances: np.ndarray, recognizer: Recognizer | None, max_duration: float
) -> dict[int, HeardRecording]:
    """Decode each of `utterances` once.

    Args:
        recognizer: scores the transcripts, if given.
        max_duration: seconds of audio in a batch for it, padding included.
    """
    shortest_first = utterances[np.argsort(data.seconds[utterances], kind="stable")]
    found: dict[int, HeardRecording] = {}
    with progress_bar("recordings", len(utterances), unit=" recordings") as bar:
        for batch in _batches(data.seconds, shortest_first, max_duration):
            found |= _heard([(number, data.cut(number)) for number in batch], recognizer)
            bar.update(len(batch))
    return found


def _batches(seconds: np.ndarray, utterances: Iterable[int], max_duration: float) -> Iterator[list[int]]:
    """Batches of utterances that are ordered by length, so that the last of a batch is its longest."""
    batch: list[int] = []
    for number in map(int, utterances):
        if batch and seconds[number] * (len(batch) + 1) > max_duration:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _heard(batch: list[tuple[int, Cut]], recognizer: Recognizer | None) -> dict[int, HeardRecording]:
    found: dict[int, HeardRecording] = {}
    loaded: list[tuple[int, Utterance]] = []
    for number, cut in batch:
        try:
            utterance = read_utterance(cut)
        except Exception as error:  # whatever a decoder throws
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            found[number] = HeardRecording(None, reason.removesuffix(" Details:"), None)  # of each of Lhotse's decoders
        else:
            loaded.append((number, utterance))
            found[number] = HeardRecording(measure(utterance.samples), "", None)
    if recognizer is not None and loaded:
        scores = transcript_scores(recognizer, collate([utterance for _, utterance in loaded], []))
        for (number, _), score in zip(loaded, scores, strict=True):
            found[number] = found[number]._replace(score=score)
    return found
