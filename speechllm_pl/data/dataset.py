"""Lhotse cuts to batches of waveforms. A long run survives bad recordings: they are skipped, counted and named."""

import logging
import os
import signal
import threading
from collections.abc import Sequence

import numpy as np
import torch
from lhotse.cut import Cut
from torch.utils.data import Dataset

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.batches import PlannedBatch
from speechllm_pl.data.handover import Handover, expect, padded
from speechllm_pl.data.recording import decoded
from speechllm_pl.models.features import SAMPLING_RATE

# Lhotse fills up to 0.5 s that a file lacks with the mirror image of its end: speech that nobody said.
os.environ.setdefault("LHOTSE_AUDIO_DURATION_MISMATCH_TOLERANCE", "0.1")  # seconds, left open by MP3 headers

log = logging.getLogger(__name__)


class SpeechDataset(Dataset):
    """Map-style: an item is a whole batch, and its index is what a sampler planned."""

    def __init__(self, cuts: Sequence[Cut]):
        self.cuts = cuts

    def __getitem__(self, planned: PlannedBatch) -> Batch:
        loaded, skipped = [], []
        expect(len(planned.indices), self._longest(planned))
        for index in planned.indices:
            name = f"cut {index}"
            try:
                cut = self.cuts[int(index)]
                name = cut.id
                loaded.append((cut, read(cut)))
            except Exception as error:  # whatever a decoder throws: one bad recording must not end the run
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                log.warning("skipped %s, which cannot be read: %s", name, reason)
                skipped.append(name)
        return collate(loaded, skipped)._replace(seed=planned.seed)

    def _longest(self, planned: PlannedBatch) -> int:
        """Samples, or 0 if that is not known before the cuts are read."""
        durations = getattr(self.cuts, "durations", None)
        if durations is None or not len(planned.indices):
            return 0
        return round(float(durations[planned.indices].max()) * SAMPLING_RATE)


def read(cut: Cut) -> np.ndarray:
    """`(N,)` float32 samples, mono, 16 kHz.

    Raises:
        UserError: there are none, or some are not finite.
    """
    samples = decoded(cut)
    if samples is None:
        if cut.sampling_rate != SAMPLING_RATE:
            cut = cut.resample(SAMPLING_RATE)
        samples = np.atleast_2d(cut.load_audio()).mean(axis=0).astype(np.float32)
    if samples.size == 0:
        raise UserError(f"{cut.id}: the recording is empty")
    if not np.isfinite(samples).all():
        raise UserError(f"{cut.id}: the recording has samples that are not finite")
    return samples


def collate(loaded: list[tuple[Cut, np.ndarray]], skipped: list[str]) -> Batch:
    """Zero-pad on the right. When nothing could be read the batch is empty: 0 utterances of 0 samples."""
    lengths = [len(samples) for _, samples in loaded]
    supervisions = [cut.supervisions[0] for cut, _ in loaded]
    return Batch(
        padded([samples for _, samples in loaded]),
        torch.tensor(lengths, dtype=torch.long),
        texts=[supervision.text or "" for supervision in supervisions],
        languages=[supervision.language or "und" for supervision in supervisions],
        ids=[cut.id for cut, _ in loaded],
        skipped=skipped,
    )


def start_worker(worker: int, handover: Handover) -> None:
    """In each of a loader's processes, before it reads."""
    leave_stopping_to_the_trainer(worker)
    handover.start(worker)


def leave_stopping_to_the_trainer(worker: int) -> None:
    """For a loader's worker: signals that reach every process of a job leave it alone; its parent can still end it.

    The training process may want to finish its step when it is signalled, and needs its batches for that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # also in threads that start from now on
        threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()


def _end_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # PyTorch takes any other status for a crash
