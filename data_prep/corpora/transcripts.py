"""The supervisions of Lhotse cut manifests, for what is trained on texts alone."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from lhotse import SupervisionSegment
from lhotse.serialization import deserialize_item

from speechllm_pl.core.cut_fields import wrong_field
from speechllm_pl.core.errors import UserError, in_one_line


def supervisions(manifest: Path) -> Iterator[SupervisionSegment]:
    """Of all cuts of a JSONL manifest, plain or gzipped, in order; no audio is opened.

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
