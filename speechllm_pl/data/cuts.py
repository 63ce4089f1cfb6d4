"""The cuts of a corpus, however they are stored."""

from pathlib import Path

from speechllm_pl.data.manifest import Manifest, read_manifest
from speechllm_pl.data.shar import SharCuts, open_shar

Cuts = Manifest | SharCuts


def read_cuts(path: Path) -> Cuts:
    """The cuts of a manifest (`train.jsonl.gz`) or of a Shar folder (`shar/train`).

    Raises:
        UserError: it is missing, broken, unfinished or empty.
    """
    return open_shar(path) if path.is_dir() else read_manifest(path)
