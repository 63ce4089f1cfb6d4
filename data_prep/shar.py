"""A manifest's cuts → Lhotse Shar: audio and cuts in shards of a thousand, read in the order of the disk.

    python -m data_prep.shar --manifest data/mls/train.jsonl.gz --output data/mls/shar/train --codec opus --jobs 16
    sbatch --array=0-31 ... python -m data_prep.shar ...          # task i of n writes shards i, i + n, ...
    python -m data_prep.shar --verify data/mls/shar/train         # reads every byte again

Audio becomes 16 kHz mono, as Opus (30 kbit/s, 13 GB per 1,000 h; a core encodes 34 h of speech an hour, so that all of
MLS takes some 1,500 core-hours) or FLAC (lossless, four and a half times the size, nearly a hundred times as fast). A
recording that is that already is taken as it is: its bytes are copied.

A shard appears when it is complete, and is left alone from then on, as long as its lines of the manifest and settings
stay the same: after an interruption the same command goes on. Whoever completes the last shard verifies all and writes
the index (`speechllm_pl/storage/shar_index.py`), with which training opens the folder as it opens a manifest.
`CutSet.from_shar` reads it too. A cut that cannot be read becomes a line of cuts.quarantine.tsv.
"""

import argparse
import functools
import gzip
import hashlib
import json
import logging
import os
import shutil
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from data_prep.audio_files import SAMPLING_RATE
from data_prep.command_line import at_least_one, run
from data_prep.processes import process_context, process_pool
from data_prep.shard import CODECS, hash_of_id, make_shard, quarantine
from speechllm_pl.core.cut_fields import refuse_repeated
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.progress import progress_bar
from speechllm_pl.storage import shar_index as shar


@dataclass(frozen=True)
class Settings:
    """What a shard's content depends on beside its input."""

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


def _plan(manifest: Path, settings: Settings) -> shar.Plan:
    inputs, ids = [], array("q")
    for _, lines in _shards(manifest, settings, "reading the manifest"):
        digest = hashlib.sha256(json.dumps(settings.to_dict()).encode())
        for line in lines:
            digest.update(line)
            ids.append(hash_of_id(line, len(ids)))
        inputs.append(digest.hexdigest()[:32])
    if not ids:
        raise UserError(f"manifest {manifest} has no cuts")
    refuse_repeated(np.frombuffer(ids, np.int64), manifest)
    return shar.Plan(len(ids), settings.to_dict(), inputs)


def _shards(manifest: Path, settings: Settings, description: str = "") -> Iterator[tuple[int, list[bytes]]]:
    """Numbers of shards and their lines of the manifest, in order."""
    try:
        with manifest.open("rb") as file, _bar(manifest.stat().st_size, description, unit="B", unit_scale=True) as bar:
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


def _prepare_folder(output: Path, plan: shar.Plan) -> None:
    """With the plan in it, and without the shards of another one that it has no place for."""
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


def _is_finished(output: Path, shard: int, plan: shar.Plan, retry: bool) -> bool:
    record = shar.read_record(output, shard)
    if record is None or record.input != plan.inputs[shard] or (retry and record.quarantined):
        return False
    paths = {output / name: size for name, (size, _) in record.files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _make_all(
    manifest: Path, output: Path, plan: shar.Plan, due: set[int], settings: Settings, jobs: int, strict: bool
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
    with _bar(cuts, f"encoding {settings.codec}", unit=" cuts") as bar:
        if jobs == 1:
            for make in work:
                make(done=bar.update)
        else:
            _in_processes(work, jobs, bar)


def _in_processes(work: Iterable[functools.partial], jobs: int, bar: tqdm) -> None:
    """Two pieces of work a process are under way: their lines are in memory, those of the others in the manifest."""
    with _pool(jobs) as (pool, counter):
        running: set[Future] = set()
        work = iter(work)
        while True:
            running |= {pool.submit(_counted, make) for make in islice(work, 2 * jobs - len(running))}
            if not running:
                return
            finished, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            bar.update(counter.value - bar.n)


@contextmanager
def _pool(jobs: int) -> Iterator[tuple[ProcessPoolExecutor, Synchronized]]:
    """Processes, and a number that each of them can raise."""
    context = process_context()
    counter = context.Value("q", 0)
    with process_pool(jobs, context, _count_with, counter) as pool:
        yield pool, counter


_done: Synchronized
"""In a worker: how many cuts all workers have done."""


def _count_with(counter: Synchronized) -> None:
    global _done
    _done = counter


def _counted(make: functools.partial) -> None:
    make(done=_count_one)


def _count_one() -> None:
    with _done.get_lock():
        _done.value += 1


# ---------------------------------------------------------------- verification


def finish_once(output: Path, jobs: int) -> None:
    """`finish`, unless that was done since the last shard changed, by this task or by one that it waits for here."""
    with shar.locked(output):
        if shar.is_joined(output):
            print(
                f"{output} is complete; it was verified when its last shard was made (--verify reads all of it again)"
            )
        else:
            finish(output, jobs)


def finish(output: Path, jobs: int) -> None:
    """Read all shards again, and write the index that readers open. One process at a time: under `shar.locked`.

    Raises:
        UserError: a shard is missing or broken; every one is printed by name.
    """
    plan = shar.read_plan(output)
    if plan is None:
        raise UserError(f"{output} is no folder that data_prep.shar has written: it has no {shar.INDEX}/plan.json")
    with _bar(plan.shards, "verifying", unit=" shards") as bar:
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


def _checked(output: Path, plan: shar.Plan, jobs: int, bar: tqdm) -> Iterator[str]:
    check = functools.partial(shar.faults, output)
    if jobs == 1:
        results = map(check, range(plan.shards), plan.inputs)
        for found in results:
            bar.update()
            yield from found
        return
    with _pool(jobs) as (pool, _):
        for found in pool.map(check, range(plan.shards), plan.inputs):
            bar.update()
            yield from found


def _write_quarantine(output: Path, shards: int) -> None:
    lines = b"".join(quarantine(output, shard).read_bytes() for shard in range(shards))
    shar.write_whole(output / shar.QUARANTINE, b"id\treason\n" + lines)


def _bar(total: int, description: str, **looks: Any) -> tqdm:
    """A progress bar; without a description none."""
    return progress_bar(description, total, disable=not description, **looks)


# ---------------------------------------------------------------- the command line


def _of_array(name: str) -> int | None:
    """What SLURM says about the job array that this is a task of."""
    value = os.environ.get(f"SLURM_ARRAY_TASK_{name}")
    return int(value) if value else None


def _tasks(index: int | None, count: int | None) -> tuple[int, int]:
    """Which task of how many: as told, else as SLURM has it, else the only one.

    Raises:
        UserError: one is told without the other, or there is no such task.
    """
    if (index is None) != (count is None):
        raise UserError("give --shard-index and --shard-count together")
    if index is None or count is None:
        count = _of_array("COUNT") or 1
        index = (_of_array("ID") or 0) - (_of_array("MIN") or 0) if count > 1 else 0
    if not 0 <= index < count:
        raise UserError(f"task {index} of {count}: number tasks from 0 in --shard-index and --shard-count")
    return index, count


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.shar", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, help="JSONL of cuts, plain or gzipped")
    parser.add_argument("--output", type=Path, help="folder for the shards, for example data/mls/shar/train")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="only read all shards of FOLDER again")
    parser.add_argument("--codec", choices=sorted(CODECS), default="opus", help="(default: %(default)s)")
    parser.add_argument("--shard-size", type=at_least_one, default=1000, help="cuts a shard (default: %(default)s)")
    parser.add_argument("--jobs", type=at_least_one, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--shard-index", type=int, help="this task's number from 0 (default: SLURM's array task)")
    parser.add_argument("--shard-count", type=int, help="how many tasks share the work (default: SLURM's)")
    parser.add_argument("--strict", action="store_true", help="stop at the first cut that cannot be read")
    parser.add_argument("--retry", action="store_true", help="make shards again that have quarantined cuts")
    commands = "run shell commands and open addresses that the manifest names instead of files; for one that you trust"
    parser.add_argument("--allow-command-sources", action="store_true", help=commands)
    return parser


def main() -> None:
    args = arguments().parse_args()
    logging.getLogger("lhotse").setLevel(logging.ERROR)
    if args.verify:
        with shar.locked(args.verify):
            finish(args.verify, args.jobs)
        return
    if not args.manifest or not args.output:
        raise UserError("give --manifest and --output, or --verify")
    task, tasks = _tasks(args.shard_index, args.shard_count)
    settings = Settings(args.codec, args.shard_size, args.allow_command_sources)
    work = {"jobs": args.jobs, "task": task, "tasks": tasks}
    export(args.manifest, args.output, settings, **work, strict=args.strict, retry=args.retry)


if __name__ == "__main__":
    run(main)
