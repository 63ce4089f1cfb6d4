"""Read the audio of utterances whose frames are not cached yet."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from lhotse.cut import Cut
from torch.utils.data import Dataset

from speechllm_pl.core.errors import in_one_line
from speechllm_pl.core.padded import Padded
from speechllm_pl.data.epoch_plan import PlannedBatch
from speechllm_pl.data.notes import Notes, reading
from speechllm_pl.data.shared_memory import padded
from speechllm_pl.data.utterance import audio_digest, read
from speechllm_pl.storage.frame_cache import FrameCache

log = logging.getLogger(__name__)


class NamedAudio(NamedTuple):
    """Audio of B utterances, and the names of their frames."""

    names: list[str]
    audio: Padded  # (B, N) samples


class UncachedAudio(Dataset):
    """Map-style dataset, whose index is the plan of a batch, of those of its utterances that have no frames."""

    def __init__(self, cuts: Sequence[Cut], frames: FrameCache):
        self.cuts = cuts
        self.frames = frames
        self.notes: Notes | None = None

    def __getitem__(self, planned: PlannedBatch) -> NamedAudio:
        found = {}
        for index in planned.indices:
            name = f"cut {index}"
            try:
                cut = self.cuts[int(index)]
                name = cut.id
                reading(name)
                if (digest := audio_digest(cut)) not in self.frames:
                    found[digest] = read(cut)
            except Exception as error:  # training will count it
                log.warning("no frames of %s, which cannot be read: %s", name, in_one_line(error))
        reading("")
        lengths = torch.tensor([len(samples) for samples in found.values()], dtype=torch.long)
        return NamedAudio(list(found), Padded(padded(list(found.values())), lengths))
