"""Cuts in, hypotheses out, with a progress bar: what evaluating and transcribing share."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from lhotse.cut import Cut
from tqdm import tqdm

from speechllm_pl.data.batch import Batch
from speechllm_pl.data.batches import Buckets, EpochBatches
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.manifest import durations_of
from speechllm_pl.decoding import Hypothesis
from speechllm_pl.training.recognizer import Recognizer


@dataclass
class Recognized:
    """What one checkpoint made of a cut set, batch by batch."""

    batches: list[Batch] = field(default_factory=list)
    hypotheses: dict[str, list[Hypothesis]] = field(default_factory=dict)  # system → one an utterance
    audio_seconds: float = 0.0
    seconds: float = 0.0  # spent in features, encoder and decoding, not in reading audio

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio."""
        return self.seconds / self.audio_seconds if self.audio_seconds else 0.0

    @property
    def skipped(self) -> list[str]:
        """Ids of recordings that could not be read."""
        return [id_ for batch in self.batches for id_ in batch.skipped]


@torch.inference_mode()
def recognize(module: Recognizer, cuts: Sequence[Cut], max_duration: float) -> Recognized:
    """Every cut, in batches of at most `max_duration` seconds; a cut that cannot be read is listed as skipped."""
    recognized = Recognized(hypotheses={system: [] for system in module.systems})
    module.begin_decoding()
    for batch in _batches(cuts, max_duration):
        recognized.batches.append(batch)
        if not batch.ids:
            continue
        started = time.perf_counter()
        on_device = batch._replace(waveforms=batch.waveforms.to(module.device), lengths=batch.lengths.to(module.device))
        for system, hypotheses in module.transcribe(on_device).items():
            recognized.hypotheses[system] += hypotheses
        recognized.seconds += time.perf_counter() - started
        recognized.audio_seconds += batch.seconds
    module.end_decoding()
    return recognized


def _batches(cuts: Sequence[Cut], max_duration: float) -> Iterator[Batch]:
    durations = durations_of(cuts)
    plan = EpochBatches(Buckets(durations, max_duration, num_buckets=10), shuffle=False)
    dataset = SpeechDataset(cuts)
    with tqdm(total=round(float(durations.sum()), 1), unit="s of audio", disable=None) as bar:
        for chosen in plan:
            yield dataset[chosen]
            bar.update(round(float(durations[chosen.indices].sum()), 1))
