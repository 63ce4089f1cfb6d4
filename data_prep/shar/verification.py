"""Verification of a folder of shards: it is read again, and gets the index that readers open when all is right."""

import functools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.machinery.processes import parallel_map
from data_prep.shar.shard_writer import quarantine
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import shar_index as shar
from speechllm_pl.storage.progress import progress_bar


def finish_once(output: Path, jobs: int) -> None:
    """Call `finish`, unless this or another task has done so since the last shard changed; wait for one that does."""
    with shar.locked(output):
        if shar.is_joined(output):
            print(
                f"{output} is complete; it was verified when its last shard was made (--verify reads all of it again)"
            )
        else:
            finish(output, jobs)


def finish(output: Path, jobs: int) -> None:
    """Read all shards again, and write the index that readers open. Call it under `shar.locked`.

    Raises:
        UserError: a shard is missing or broken; every one is printed by name.
    """
    plan = shar.read_plan(output)
    if plan is None:
        raise UserError(f"{output} is no folder that data_prep.shar has written: it has no {shar.INDEX}/plan.json")
    with progress_bar("verifying", plan.shards, unit=" shards") as bar:
        found = list(_checked(output, plan, jobs, bar))
    if found:
        print("\n".join(found), file=sys.stderr)
        shutil.rmtree(output / shar.INDEX / "joined", ignore_errors=True)
        raise UserError(f"{output}: {len(found)} faults, named above: delete those files and {shar.AGAIN}")
    records = [shar.read_record(output, shard) for shard in range(plan.shards)]
    quarantined = sum(record.quarantined for record in records if record)
    _write_quarantine(output, plan.shards)
    joined = shar.join(output, plan.shards)
    if len(joined.durations) + quarantined != plan.cuts:
        raise UserError(f"{output}: {len(joined.durations)} cuts and {quarantined} quarantined are not {plan.cuts}")
    hours = joined.durations.sum(dtype=np.float64) / 3600
    print(f"{output}: verified {len(joined.durations)} cuts, {hours:.2f} h, in {plan.shards} shards")
    if quarantined:
        print(f"{quarantined} quarantined: {output / shar.QUARANTINE} (--retry reads them again)")


def _checked(output: Path, plan: shar.ExportPlan, jobs: int, bar: tqdm) -> Iterator[str]:
    check = functools.partial(shar.faults, output)
    with parallel_map(jobs) as run:
        for found in run(check, range(plan.shards), plan.inputs):
            bar.update()
            yield from found


def _write_quarantine(output: Path, shards: int) -> None:
    lines = b"".join(quarantine(output, shard).read_bytes() for shard in range(shards))
    shar.write_whole(output / shar.QUARANTINE, b"id\treason\n" + lines)
