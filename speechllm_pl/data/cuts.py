"""The cuts of a corpus, however they are stored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from lhotse.cut import Cut

from speechllm_pl.data.manifest import Manifest, read_manifest
from speechllm_pl.data.shar_cuts import SharCuts


class Cuts(Protocol):
    """Cuts of a manifest or of shards; shards also have `shard_starts`, `(S + 1,)` positions of cuts."""

    durations: np.ndarray  # (n,) float32 seconds
    languages: np.ndarray  # (n,) uint8, of `language_codes`

    @property
    def language_codes(self) -> tuple[str, ...]: ...

    @property
    def characters(self) -> str: ...

    def texts(self) -> Iterator[str]: ...

    def select(self, rows: np.ndarray, /) -> "Cuts": ...

    def where(self, position: int, /) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Cut: ...


def read_cuts(path: Path, *, allow_commands: bool = False) -> Manifest | SharCuts:
    """Open the cuts of a manifest (`train.jsonl.gz`) or of a Shar folder (`shar/train`), which holds its audio.

    Args:
        allow_commands: of a manifest also take cuts whose audio comes from shell commands or over the network.

    Raises:
        UserError: it is missing, broken, unfinished or empty, or names audio that is no file.
    """
    return SharCuts(path) if path.is_dir() else read_manifest(path, allow_commands=allow_commands)
