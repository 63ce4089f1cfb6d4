"""Read batches of waveforms from Lhotse cuts. Bad recordings are skipped, counted and named."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from lhotse.cut import Cut
from torch.utils.data import Dataset

from speechllm_pl.core.audio.units import samples_in
from speechllm_pl.core.errors import UserError, in_one_line
from speechllm_pl.data.augmentation import Augmentation, augment
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.epoch_plan import PlannedBatch
from speechllm_pl.data.notes import Notes, reading
from speechllm_pl.data.shared_memory import padded, padded_frames
from speechllm_pl.data.utterance import Utterance, is_text_alone, read_utterance
from speechllm_pl.storage.frame_cache import FrameCache

log = logging.getLogger(__name__)


class SpeechDataset(Dataset):
    """Map-style dataset: an item is a whole batch, and its index the plan of a sampler.

    Args:
        cuts: cuts of the utterances.
        augmentations: augmentations in the order in which they are applied.
        seed: seed of augmentations, together with the epoch and the ids.
        texts_alone: whether texts without audio may be among them; else they are bad recordings.
        frames: what has the frames of a frozen encoder, so that no audio is read.
    """

    def __init__(
        self,
        cuts: Sequence[Cut],
        augmentations: Sequence[Augmentation] = (),
        seed: int = 0,
        *,
        texts_alone: bool = False,
        frames: FrameCache | None = None,
    ):
        self.texts_alone = texts_alone
        self.cuts = cuts
        self.augmentations = augmentations
        self.seed = seed
        self.frames = frames
        self._memory = np.empty(0, np.float32)
        self.notes: Notes | None = None  # a loader has its processes note there what they are reading

    def __getitem__(self, planned: PlannedBatch) -> Batch:
        utterances, skipped, unread = [], [], ""
        rows = self._rows(len(planned.indices), samples_in(planned.longest))
        copies = [0] * len(planned.indices) if planned.copies is None else planned.copies.tolist()
        for index, copy in zip(planned.indices, copies, strict=True):
            name, file = f"cut {index}", self._where(index)
            try:
                reading(f"{name} ({file})")
                cut = self.cuts[int(index)]
                name = cut.id
                file = _file_of(cut) or file
                reading(f"{name} ({file})")
                if is_text_alone(cut) and not self.texts_alone:
                    raise UserError(f"{name} is a text without audio: only stage 2 trains on it")
                utterances.append(read_utterance(cut, copy, rows[len(utterances)], self.frames))
            except Exception as error:  # whatever a decoder throws: one bad recording must not end the run
                log.warning("skipped %s, which cannot be read: %s", name, in_one_line(error))
                skipped.append(name)
                unread = f"{name} ({file}): {in_one_line(error)}"
        alone = [utterance for utterance in utterances if utterance.is_text_alone]
        spoken = [utterance for utterance in utterances if not utterance.is_text_alone]
        utterances = [*augment(spoken, self.augmentations, self.seed, planned.epoch), *alone]
        reading("")
        read = collate(utterances, skipped)
        read = read._replace(seed=planned.seed, due=len(planned.indices), unread=unread)
        if self.frames is None:
            return read
        return read._replace(frozen=padded_frames([each.frames for each in utterances if each.frames is not None]))

    def _rows(self, count: int, samples: int) -> np.ndarray:
        """Array `(count, samples)` to decode into, in the previous batch's memory, which need not be cleared again."""
        if self._memory.size < count * samples:
            self._memory = np.empty(count * samples, np.float32)
        return self._memory[: count * samples].reshape(count, samples)

    def _where(self, index: int) -> str:
        """File of a cut, as far as it is known without reading it."""
        where = getattr(self.cuts, "where", None)
        return "" if where is None else where(index)


def _file_of(cut: Cut) -> str:
    """File of the recording, if it has one of its own."""
    sources = getattr(getattr(cut, "recording", None), "sources", ())
    return ", ".join(str(source.source) for source in sources if source.type != "memory")


def collate(utterances: list[Utterance], skipped: list[str]) -> Batch:
    """Make a batch, zero-padded on the right. If nothing could be read it has 0 utterances of 0 samples.

    Args:
        utterances: texts without audio last.
        skipped: ids of those that could not be read.
    """
    recordings = [utterance.samples for utterance in utterances]
    return Batch(
        padded(recordings),
        torch.tensor([utterance.without_audio or len(utterance.samples) for utterance in utterances], dtype=torch.long),
        texts=[utterance.text for utterance in utterances],
        languages=[utterance.language for utterance in utterances],
        ids=[utterance.id for utterance in utterances],
        skipped=skipped,
        simulated=sum(utterance.is_text_alone for utterance in utterances),
    )
