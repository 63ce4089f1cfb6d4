"""Recognition of cuts with a progress bar, shared by evaluate and transcribe."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lhotse.cut import Cut

from speechllm_pl.core.audio.units import seconds_of
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches
from speechllm_pl.data.loader import loader
from speechllm_pl.data.manifest import durations_of
from speechllm_pl.recognition.acceptance import Acceptance
from speechllm_pl.recognition.decoding_options import DecodingOptions, Precision
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.progress import progress_bar


@dataclass(frozen=True)
class RecognizedBatch:
    """B utterances, without their audio."""

    ids: list[str]
    languages: list[str]
    texts: list[str]  # references
    skipped: list[str]  # ids of recordings that could not be read
    hypotheses: dict[str, list[Hypothesis]]  # system → one an utterance
    durations: list[float]  # seconds of audio of each
    seconds: float = field(default=0.0, compare=False)  # of features, encoder and decoding
    acceptance: Acceptance = field(default_factory=Acceptance)  # of the LLM's texts
    decoded_by: Mapping[str, int] = field(default_factory=dict)  # numbers of the LLM's texts by their origins

    @property
    def times(self) -> list[float]:
        """Share of each utterance in the seconds of the batch, by its duration."""
        return [self.seconds * duration / sum(self.durations) for duration in self.durations]


@dataclass
class Recognized:
    """Hypotheses of one checkpoint for a cut set, batch by batch."""

    batches: list[RecognizedBatch] = field(default_factory=list)
    audio_seconds: float = 0.0
    seconds: float = 0.0  # from asking for the first batch to having the last text
    waiting_seconds: float = 0.0  # of these for audio

    @classmethod
    def of_ranks(cls, parts: Sequence["Recognized"]) -> "Recognized":
        """Merge the batches of all ranks, in the order of a single one."""
        batches = [batch for turn in zip(*(part.batches for part in parts), strict=True) for batch in turn]
        times = zip(*((part.audio_seconds, part.seconds, part.waiting_seconds) for part in parts), strict=True)
        return cls(batches, *map(sum, times))

    @property
    def real_time_factor(self) -> float:
        """Seconds of a device per second of audio: in waiting for audio, features, encoder and decoding.

        Loading the model does not count.
        """
        return self.seconds / self.audio_seconds if self.audio_seconds else 0.0

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second of a device, as the Open ASR leaderboard counts: features, encoder, decoding.

        Reading does not count, and neither does the warm-up.
        """
        seconds = sum(batch.seconds for batch in self.batches)
        return self.audio_seconds / seconds if seconds else 0.0

    @property
    def ids(self) -> list[str]:
        return [id_ for batch in self.batches for id_ in batch.ids]

    @property
    def languages(self) -> list[str]:
        return [language for batch in self.batches for language in batch.languages]

    @property
    def texts(self) -> list[str]:
        """The references."""
        return [text for batch in self.batches for text in batch.texts]

    @property
    def skipped(self) -> list[str]:
        """Ids of recordings that could not be read."""
        return [id_ for batch in self.batches for id_ in batch.skipped]

    @property
    def acceptance(self) -> Acceptance:
        return sum((batch.acceptance for batch in self.batches), Acceptance())

    @property
    def decoded_by(self) -> dict[str, int]:
        """Numbers of the LLM's texts by their origins; of pieces where recordings were divided."""
        return dict(sum((Counter(batch.decoded_by) for batch in self.batches), Counter()))

    def hypotheses(self, system: str) -> list[Hypothesis]:
        return [found for batch in self.batches for found in batch.hypotheses.get(system, [])]


def recognize_batch(recognizer: Recognizer, batch: Batch, options: DecodingOptions) -> RecognizedBatch:
    """Recognise a batch whose audio may be on any device; an empty batch gives no hypotheses."""
    found = {}
    if batch.ids:
        there = batch.to(recognizer.device)
        found = recognizer.transcribe(there.waveforms, there.lengths, batch.languages, options)
    durations = [seconds_of(length) for length in batch.lengths.tolist()]
    written = found.get("llm", [])
    origins = Counter("ctc" if each.by_ctc or not each.passes else "llm" for each in written)
    told = {"acceptance": Acceptance.of(written), "decoded_by": origins}
    return RecognizedBatch(batch.ids, batch.languages, batch.texts, batch.skipped, found, durations, **told)


def recognize(
    recognizer: Recognizer,
    cuts: Sequence[Cut],
    max_duration: float,
    *,
    precision: Precision | None = None,
    options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    warm_up: bool = False,
) -> Recognized:
    """Recognise all cuts, in batches of at most `max_duration` seconds; cuts that cannot be read are skipped.

    Args:
        precision: precision of the computation; default is that of training.
        options: options of the search for an LLM's text.
        num_workers: processes that read audio ahead.
        rank, world_size: select this rank's share of the batches, which do not depend on the number of ranks.
        warm_up: recognise the first batch once before, which counts in no time.
    """
    recognized = Recognized()
    with recognizer.decoding(precision):
        started = asked = time.perf_counter()
        for batch in _batches(cuts, max_duration, num_workers, rank, world_size, recognizer.device.type == "cuda"):
            came = time.perf_counter()
            recognized.waiting_seconds += came - asked
            if warm_up and not recognized.batches:
                recognize_batch(recognizer, batch, options)
                warm = time.perf_counter() - came
                started, came = started + warm, came + warm
            found = recognize_batch(recognizer, batch, options)
            recognized.audio_seconds += batch.seconds
            asked = time.perf_counter()
            recognized.batches.append(replace(found, seconds=asked - came))
        recognized.seconds = time.perf_counter() - started
    return recognized


def _batches(
    cuts: Sequence[Cut], max_duration: float, num_workers: int, rank: int, world_size: int, pin_memory: bool
) -> Iterator[Batch]:
    durations = durations_of(cuts)
    plan = EpochBatches(
        Buckets(durations, max_duration, num_buckets=10), shuffle=False, rank=rank, world_size=world_size, fill="empty"
    )
    workers = min(num_workers, len(plan) - 1)  # one batch is not worth a process
    read = loader(SpeechDataset(cuts), plan, workers, pin_memory=pin_memory)
    seconds = [float(durations[planned.indices].sum()) for planned in plan]
    with progress_bar("decoding", round(sum(seconds)), unit=" s of audio", disable=rank > 0) as bar:
        for batch, done in zip(read, itertools.accumulate(seconds), strict=True):
            yield batch
            bar.update(round(done) - bar.n)
