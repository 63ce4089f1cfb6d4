"""Lhotse cuts to batches of waveforms. A long run survives bad recordings: they are skipped, counted and named."""

import logging
import os
import signal
import threading
from collections.abc import Sequence

import torch
from lhotse.cut import Cut
from torch.utils.data import Dataset

from speechllm_pl.data.augmentation import Augmentation, augment
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.batches import PlannedBatch
from speechllm_pl.data.handover import Handover, empty
from speechllm_pl.data.utterance import Utterance, read_utterance

log = logging.getLogger(__name__)


class SpeechDataset(Dataset):
    """Map-style: an item is a whole batch, and its index is what a sampler planned.

    Args:
        cuts: of the utterances.
        augmentations: what is done to them, in this order.
        seed: of what augmentations draw, together with the epoch and the ids.
    """

    def __init__(self, cuts: Sequence[Cut], augmentations: Sequence[Augmentation] = (), seed: int = 0):
        self.cuts = cuts
        self.augmentations = augmentations
        self.seed = seed

    def __getitem__(self, planned: PlannedBatch) -> Batch:
        utterances, skipped = [], []
        for index in planned.indices:
            name = f"cut {index}"
            try:
                cut = self.cuts[int(index)]
                name = cut.id
                utterances.append(read_utterance(cut))
            except Exception as error:  # whatever a decoder throws: one bad recording must not end the run
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                log.warning("skipped %s, which cannot be read: %s", name, reason)
                skipped.append(name)
        utterances = augment(utterances, self.augmentations, self.seed, planned.epoch)
        return collate(utterances, skipped)._replace(seed=planned.seed)


def collate(utterances: list[Utterance], skipped: list[str]) -> Batch:
    """Zero-pad on the right. When nothing could be read the batch is empty: 0 utterances of 0 samples."""
    lengths = [len(utterance.samples) for utterance in utterances]
    waveforms = empty(len(utterances), max(lengths, default=0))
    for row, utterance in zip(waveforms, utterances, strict=True):
        row[: len(utterance.samples)] = torch.from_numpy(utterance.samples)
        row[len(utterance.samples) :] = 0
    return Batch(
        waveforms,
        torch.tensor(lengths, dtype=torch.long),
        texts=[utterance.text for utterance in utterances],
        languages=[utterance.language for utterance in utterances],
        ids=[utterance.id for utterance in utterances],
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
