"""Export of a manifest as Shar: the plan of its shards, and the making of those that are not there yet."""

import functools
import gzip
import hashlib
import json
import shutil
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from data_prep.shar.shard_writer import hash_of_id, make_shard
from data_prep.shar.verification import finish_once
from data_prep.shar.workers import counting_pool, run_counted
from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.cut_fields import refuse_repeated
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import shar_index as shar
from speechllm_pl.storage.progress import progress_bar


@dataclass(frozen=True)
class Settings:
    """Settings that decide a shard's content, beside its input."""

    codec: str
    shard_size: int  # cuts
    allow_commands: bool = False  # also read what is no file

    def to_dict(self) -> dict[str, int | str]:
        settings: dict[str, int | str] = {"version": shar.VERSION, "codec": self.codec, "hz": SAMPLING_RATE}
        settings |= {"allow_commands": True} if self.allow_commands else {}  # earlier exports lack it
        return settings | {"shard_size": self.shard_size}


# ---------------------------------------------------------------- all shards


def export(
    manifest: Path,
    output: Path,
    settings: Settings,
    *,
    jobs: int = 1,
    task: int = 0,
    tasks: int = 1,
    strict: bool = False,
    retry: bool = False,
) -> None:
    """Make those of this task's shards that are not there; verify and join all if they are all there then.

    Args:
        jobs: processes.
        task, tasks: shards task, task + tasks, ... are made here.
        retry: make those again that have quarantined cuts.

    Raises:
        UserError: the manifest is missing, empty or broken; the folder holds something else; the disk's bytes are not
            what was written.
        Refused: `strict`, and a cut cannot be used.
    """
    plan = _plan(manifest, settings)
    _prepare_folder(output, plan)
    mine = range(task, plan.shards, tasks)
    due = {shard for shard in mine if not _is_finished(output, shard, plan, retry)}
    print(f"{manifest}: {plan.cuts} cuts, {plan.shards} shards of {settings.shard_size} in {output}")
    if len(due) < len(mine):
        print(f"{len(mine) - len(due)} of this task's {len(mine)} shards are complete and left alone")
    if due:
        _make_all(manifest, output, plan, due, settings, jobs, strict)
    left = shar.unfinished(output, plan)
    if left:
        print(f"{len(left)} shards of other tasks are still to come; the last task verifies all")
    else:
        finish_once(output, jobs)


def _plan(manifest: Path, settings: Settings) -> shar.ExportPlan:
    inputs, ids = [], array("q")
    for _, lines in _shards(manifest, settings, "reading the manifest"):
        digest = hashlib.sha256(json.dumps(settings.to_dict()).encode())
        for line in lines:
            digest.update(line)
            ids.append(hash_of_id(line, len(ids)))
        inputs.append(digest.hexdigest()[:32])
    if not ids:
        raise UserError(f"manifest {manifest} has no cuts")
    refuse_repeated(np.frombuffer(ids, np.int64), str(manifest))
    return shar.ExportPlan(len(ids), settings.to_dict(), inputs)


def _shards(manifest: Path, settings: Settings, description: str = "") -> Iterator[tuple[int, list[bytes]]]:
    """Iterate over the numbers of shards and their lines of the manifest."""
    try:
        size = manifest.stat().st_size
        with (
            manifest.open("rb") as file,
            progress_bar(description, size, disable=not description, unit="B", unit_scale=True) as bar,
        ):
            lines = _unpacked(file, manifest)
            for shard in range(sys.maxsize):
                chunk = [line.rstrip(b"\n") + b"\n" for line in islice(lines, settings.shard_size)]
                bar.update(file.tell() - bar.n)
                if not chunk:
                    return
                yield shard, chunk
    except (OSError, EOFError, zlib.error) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise UserError(f"manifest {manifest} {reason}: prepare the corpus first") from error


def _unpacked(file: BinaryIO, manifest: Path) -> Iterator[bytes]:
    return iter(gzip.open(file) if manifest.suffix == ".gz" else file)


def _prepare_folder(output: Path, plan: shar.ExportPlan) -> None:
    """Put the plan into the folder, and remove shards of another plan that it has no place for."""
    if shar.read_plan(output) == plan:
        return
    foreign = output.is_dir() and not (output / shar.INDEX).is_dir() and any(output.iterdir())
    if foreign:
        raise UserError(f"{output} holds something else: give --output a new folder")
    shutil.rmtree(output / shar.INDEX / "joined", ignore_errors=True)
    for path in output.glob("recording.*.tar"):
        shard = int(path.name.split(".")[1])
        if shard >= plan.shards:
            shar.withdraw(output, shard)
            for left in (path, output / shar.cuts_name(shard), *(output / shar.INDEX).glob(f"{shard:06d}.*")):
                left.unlink(missing_ok=True)
    shar.write_plan(output, plan)


def _is_finished(output: Path, shard: int, plan: shar.ExportPlan, retry: bool) -> bool:
    record = shar.read_record(output, shard)
    if record is None or record.input != plan.inputs[shard] or (retry and record.quarantined):
        return False
    paths = {output / name: size for name, (size, _) in record.files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _make_all(
    manifest: Path, output: Path, plan: shar.ExportPlan, due: set[int], settings: Settings, jobs: int, strict: bool
) -> None:
    work = (
        functools.partial(
            make_shard, output, shard, lines, plan.inputs[shard], settings.codec, strict, settings.allow_commands
        )
        for shard, lines in _shards(manifest, settings)
        if shard in due
    )
    size = settings.shard_size
    cuts = sum(min(size, plan.cuts - shard * size) for shard in due)
    with progress_bar(f"encoding {settings.codec}", cuts, unit=" cuts") as bar:
        if jobs == 1:
            for make in work:
                make(done=bar.update)
        else:
            _in_processes(work, jobs, bar)


def _in_processes(work: Iterable[functools.partial], jobs: int, bar: tqdm) -> None:
    """Keep two shards a process under way: their lines are in memory, those of the others in the manifest."""
    with counting_pool(jobs) as (pool, counter):
        running: set[Future] = set()
        work = iter(work)
        while True:
            running |= {pool.submit(run_counted, make) for make in islice(work, 2 * jobs - len(running))}
            if not running:
                return
            finished, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            bar.update(counter.value - bar.n)
