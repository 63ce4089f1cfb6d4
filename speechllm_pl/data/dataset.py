"""Lhotse cuts to batches of waveforms. A long run survives bad recordings: they are skipped, counted and named."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lhotse.cut import Cut
from torch.utils.data import Dataset

from speechllm_pl.data.augmentation import Augmentation, augment
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.batches import PlannedBatch
from speechllm_pl.data.handover import expect, padded
from speechllm_pl.data.utterance import Utterance, read_utterance
from speechllm_pl.models.features import SAMPLING_RATE

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
        cuts: list[tuple[Cut, int]] = []
        utterances: list[Utterance] = []
        skipped: list[str] = []
        expect(len(planned.indices), self._longest(planned))
        copies = [0] * len(planned.indices) if planned.copies is None else planned.copies.tolist()
        # First all cuts, then all audio: decoding drives what reads cuts out of the processor's caches.
        for index, copy in zip(planned.indices.tolist(), copies, strict=True):
            with _skipping(f"cut {index}", skipped):
                cuts.append((self.cuts[index], copy))
        for cut, copy in cuts:
            with _skipping(cut.id, skipped):
                utterances.append(read_utterance(cut, copy))
        utterances = augment(utterances, self.augmentations, self.seed, planned.epoch)
        return collate(utterances, skipped)._replace(seed=planned.seed)

    def _longest(self, planned: PlannedBatch) -> int:
        """Samples, or 0 if that is not known before the cuts are read."""
        durations = getattr(self.cuts, "durations", None)
        if durations is None or not len(planned.indices):
            return 0
        return round(float(durations[planned.indices].max()) * SAMPLING_RATE)


@contextmanager
def _skipping(name: str, skipped: list[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a decoder throws: one bad recording must not end the run
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("skipped %s, which cannot be read: %s", name, reason)
        skipped.append(name)


def collate(utterances: list[Utterance], skipped: list[str]) -> Batch:
    """Zero-pad on the right. When nothing could be read the batch is empty: 0 utterances of 0 samples."""
    lengths = [len(utterance.samples) for utterance in utterances]
    return Batch(
        padded([utterance.samples for utterance in utterances]),
        torch.tensor(lengths, dtype=torch.long),
        texts=[utterance.text for utterance in utterances],
        languages=[utterance.language for utterance in utterances],
        ids=[utterance.id for utterance in utterances],
        skipped=skipped,
    )
