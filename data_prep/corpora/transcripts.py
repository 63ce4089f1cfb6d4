"""Transcripts of Lhotse manifests, for what is trained on text alone."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lhotse import SupervisionSegment
from lhotse.serialization import deserialize_item

from speechllm_pl.core.cut_fields import wrong_field
from speechllm_pl.core.errors import UserError, in_one_line


def read_transcripts(manifests: Sequence[Path]) -> list[tuple[str, str]]:
    """Languages ("" where none is named) and transcripts of manifests, in order, repetitions included.

    Raises:
        UserError: a manifest is missing or broken, or there is no transcript at all.
    """
    found = [
        (each.language or "", " ".join((each.text or "").split()))
        for manifest in manifests
        for each in supervisions(manifest)
    ]
    found = [(language, text) for language, text in found if text]
    if not found:
        raise UserError(f"no transcripts in {', '.join(map(str, manifests))}: there is nothing to train on")
    return found


def supervisions(manifest: Path) -> Iterator[SupervisionSegment]:
    """Iterate over the supervisions of a JSONL manifest, plain or gzipped; no audio is opened.

    Raises:
        UserError: the manifest is missing or broken; the message names the line.
    """
    if not manifest.is_file():
        raise UserError(f"manifest {manifest} does not exist: prepare the corpus first, or check the path")
    number = 0
    try:
        with gzip.open(manifest) if manifest.suffix == ".gz" else manifest.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                cut = json.loads(line)
                if wrong := wrong_field(cut):
                    raise UserError(f"manifest {manifest}, line {number}: {wrong}: mend or delete this line")
                yield from deserialize_item(cut).supervisions
    except UserError:
        raise
    except Exception as error:  # gzip, JSON and Lhotse's own classes raise of every kind
        what = f"not a readable Lhotse cut set, near line {max(number, 1)}: {in_one_line(error)}"
        raise UserError(f"manifest {manifest} is {what}") from error
