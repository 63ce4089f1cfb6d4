"""Identity of training data, independent of its location and packing."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.cuts import Cuts

TEXTS = 1_000
"""Transcripts that are read, evenly spaced: those of millions of cuts would take minutes."""


def identity(cuts: Cuts, place: str) -> dict[str, Any]:
    """Digest of every utterance's duration and language, in order, and of some transcripts.

    Args:
        cuts: cuts of one source.
        place: location, used in messages only.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(cuts.durations.tobytes())
    digest.update(cuts.languages.tobytes())
    digest.update(" ".join(cuts.language_codes).encode())
    rows = np.unique(np.linspace(0, len(cuts) - 1, min(TEXTS, len(cuts))).round().astype(np.int64))
    for text in cuts.select(rows).texts():
        digest.update(text.encode(errors="surrogatepass") + b"\n")
    return {"place": place, "utterances": len(cuts), "digest": digest.hexdigest()}


def difference(former: Mapping[str, dict[str, Any]], ours: Mapping[str, dict[str, Any]]) -> str:
    """Describe how the sources of two runs differ; empty if they are the same, wherever they are."""
    if {name: each["digest"] for name, each in former.items()} == {name: each["digest"] for name, each in ours.items()}:
        return ""
    return f"{_shown(former)} -> {_shown(ours)}"


def refuse_other_data(former: Mapping[str, dict[str, Any]], ours: Mapping[str, dict[str, Any]]) -> None:
    """Refuse to continue a run on other data.

    Raises:
        UserError: the data differ; the message names both.
    """
    if difference(former, ours):
        raise UserError(
            f"this run was trained on {_shown(former)}, but is now given {_shown(ours)}, which is other data: give"
            " another run folder (RUN=), the former data, or --data.other_data true to go on with other data on purpose"
        )


def _shown(sources: Mapping[str, dict[str, Any]]) -> str:
    return ", ".join(f"{each['place']} ({each['utterances']:,} utterances)" for each in sources.values())
