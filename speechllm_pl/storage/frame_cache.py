"""Frames of a frozen encoder, computed once and kept in a folder: safetensors shards with a checksum of every entry.

A shard is written whole and never changed, under a name of its own, so any number of processes may write and read.
"""

import uuid
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.whole_file import write_whole

SHARD_BYTES = 64 * 2**20
"""Bytes of frames of a shard: what a killed process loses at most."""


class FrameCache:
    """The `(T, dim)` frames of utterances by name, in the precision in which they were computed.

    Args:
        folder: holds frames of one encoder.

    Raises:
        UserError: a shard is cut short.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._shards: dict[str, Path] = {}
        self._new: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as shard:
                    self._shards |= dict.fromkeys(shard.keys(), path)
            except SafetensorError as error:
                raise _damaged(path) from error

    def __contains__(self, name: str) -> bool:
        return name in self._shards or name in self._new

    def read(self, name: str) -> Tensor:
        """Read the frames of an utterance.

        Raises:
            UserError: there are none, or they are not what was written.
        """
        if name not in self._shards:
            raise UserError(
                f"its frames are not in {self.folder}: its recording could not be read when the run began, or another"
                " machine wrote to a folder of its own (--data.cache_frames takes one that all of them share)"
            )
        path = self._shards[name]
        try:
            with safe_open(path, "pt") as shard:
                frames, checksum = shard.get_tensor(name), shard.metadata()[name]
        except (SafetensorError, OSError) as error:
            raise _damaged(path) from error
        if _checksum(frames) != checksum:
            raise _damaged(path)
        return frames

    def add(self, name: str, frames: Tensor) -> None:
        """Keep the frames of an utterance; they are on disk after the next `flush`, or once a shard is full."""
        self._new[name] = frames.cpu().contiguous()
        if sum(each.nbytes for each in self._new.values()) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was added.

        Raises:
            UserError: it cannot be written.
        """
        if not self._new:
            return
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            write_whole(path, save(self._new, {name: _checksum(frames) for name, frames in self._new.items()}))
        except OSError as error:
            raise UserError(
                f"frames cannot be written to {self.folder} ({error.strerror}): give a folder with room for them"
                " (--data.cache_frames FOLDER), or leave data.cache_frames out"
            ) from error
        self._shards |= dict.fromkeys(self._new, path)
        self._new = {}

    def __reduce__(self) -> tuple:
        """Pickle the folder alone: another process looks for itself."""
        return FrameCache, (self.folder,)


def _checksum(frames: Tensor) -> str:
    return f"{zlib.crc32(frames.view(torch.uint8).numpy().data):08x}"


def _damaged(path: Path) -> UserError:
    return UserError(f"cached frames {path} are damaged: delete this file, and the next start computes them again")
