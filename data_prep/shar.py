"""A manifest's cuts → Lhotse Shar: audio and cuts in shards of a thousand, read in the order of the disk.

    python -m data_prep.shar --manifest data/mls/train.jsonl.gz --output data/mls/shar/train --codec opus --jobs 16
    sbatch --array=0-31 ... python -m data_prep.shar ...          # task i of n writes shards i, i + n, ...
    python -m data_prep.shar --verify data/mls/shar/train         # reads every byte again

Audio becomes 16 kHz mono, as Opus (28 kbit/s, 13 GB per 1,000 h; a core encodes 40 h of speech an hour, so that all of
MLS takes about 1,250 core-hours) or FLAC (lossless, five times the size, 4,000 h an hour and core: a hundred times as
fast). A recording that is that already is taken as it is: its bytes are copied.

A shard appears when it is complete, and is left alone from then on, as long as its lines of the manifest and settings
stay the same: after an interruption the same command goes on. Whoever completes the last shard verifies all and writes
the index (`speechllm_pl/core/shar.py`), with which training opens the folder as it opens a manifest. `CutSet.from_shar`
reads it too. A cut that cannot be read becomes a line of cuts.quarantine.tsv.
"""

import argparse
import functools
import gzip
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import soundfile
from lhotse import AudioSource, MonoCut, Recording, fastcopy
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from tqdm import tqdm

from data_prep.corpus import SAMPLING_RATE, Refused, Rejected, check_samples, run
from data_prep.processes import process_context, process_pool
from speechllm_pl.core import shar
from speechllm_pl.core.errors import UserError

# Lhotse fills up to 0.5 s that a file lacks with the mirror image of its end: speech that nobody said.
os.environ.setdefault("LHOTSE_AUDIO_DURATION_MISMATCH_TOLERANCE", "0.1")  # seconds, left open by MP3 headers

CODECS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
"""Formats and subtypes of libsndfile."""

BLOCK = 512
"""Bytes to which a tar fills up its files."""


@dataclass(frozen=True)
class Settings:
    """What a shard's content depends on beside its input."""

    codec: str
    shard_size: int  # cuts

    def to_dict(self) -> dict[str, int | str]:
        return {"version": shar.VERSION, "codec": self.codec, "hz": SAMPLING_RATE, "shard_size": self.shard_size}


class Encoded(NamedTuple):
    """A cut on its way into a shard."""

    cut: MonoCut  # its recording is a placeholder
    audio: bytes


# ---------------------------------------------------------------- one cut


def encoded(line: bytes, codec: str) -> Encoded:
    """Read a cut and its audio, and encode it.

    Raises:
        Rejected: with the reason, whatever it is that cannot be used.
    """
    try:
        cut = deserialize_item(json.loads(line))
        if len(cut.supervisions) != 1:
            raise Rejected(f"not one supervision: {len(cut.supervisions)}")
        _check_name(cut.id, codec)
        samples = _samples(cut)
    except Rejected:
        raise
    except Exception as error:  # whatever Lhotse and the decoders throw
        raise Rejected(f"unreadable: {_one_line(error)}") from error
    check_samples(samples, SAMPLING_RATE)
    audio = _original(cut, codec, len(samples)) or encode(samples, codec)
    return Encoded(_with_placeholder(cut, len(samples)), audio)


def _check_name(name: str, codec: str) -> None:
    """Lhotse compares an utterance's id with its name in the tar, less the suffix."""
    path = Path(f"{name}.{codec}")
    if not name or str(path.parent / path.stem) != name:
        raise Rejected("id that a tar cannot have as a name")


def _samples(cut: Cut) -> np.ndarray:
    """`(N,)` float32, mono, 16 kHz."""
    if cut.sampling_rate != SAMPLING_RATE:
        cut = cut.resample(SAMPLING_RATE)
    audio = cut.load_audio()
    if audio is None:
        raise Rejected("no recording")
    return np.atleast_2d(audio).mean(axis=0)


def _original(cut: Cut, codec: str, samples: int) -> bytes | None:
    """The bytes of a recording that is, as a whole, what it would be encoded as: lossy coding is not done twice."""
    if not isinstance(cut, MonoCut) or cut.recording is None or cut.recording.transforms:
        return None
    (source, *others) = cut.recording.sources
    if others or source.type != "file":
        return None
    path = Path(str(source.source))
    found = soundfile.info(path)
    form = (found.format, found.subtype, found.samplerate, found.channels, found.frames)
    return path.read_bytes() if form == (*CODECS[codec], SAMPLING_RATE, 1, samples) else None


def _with_placeholder(cut: Cut, samples: int) -> MonoCut:
    """The cut of `samples` at 16 kHz whose audio stands in a shard."""
    source = AudioSource(type="shar", channels=[0], source="")
    seconds = samples / SAMPLING_RATE
    recording = Recording(cut.id, [source], SAMPLING_RATE, samples, seconds, channel_ids=[0])
    (supervision,) = cut.supervisions
    supervision = fastcopy(supervision, recording_id=cut.id, channel=0)
    custom = cut.custom if isinstance(cut, MonoCut) else None
    return MonoCut(cut.id, 0.0, seconds, 0, supervisions=[supervision], recording=recording, custom=custom)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# ---------------------------------------------------------------- encoding


def encode(samples: np.ndarray, codec: str) -> bytes:
    """`samples` (N,) at 16 kHz → a file's bytes, a function of the samples alone.

    Samples beyond full scale are scaled down, not clipped.
    """
    file_format, subtype = CODECS[codec]
    file = io.BytesIO()
    peak = max(1.0, float(np.abs(samples).max()))
    soundfile.write(file, samples / peak, SAMPLING_RATE, format=file_format, subtype=subtype)
    return _with_serial(file.getvalue(), 1) if codec == "opus" else file.getvalue()


def _with_serial(ogg: bytes, serial: int) -> bytes:
    """An Ogg stream under another serial number: libsndfile's is drawn at random, and the same speech shall give the
    same bytes."""
    pages, start = bytearray(ogg), 0
    while start < len(pages):
        segments = pages[start + 26]
        table = start + 27
        end = table + segments + sum(pages[table : table + segments])
        pages[start + 14 : start + 18] = serial.to_bytes(4, "little")
        pages[start + 22 : start + 26] = bytes(4)
        pages[start + 22 : start + 26] = _ogg_crc(bytes(pages[start:end])).to_bytes(4, "little")
        start = end
    return bytes(pages)


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_crc(page: bytes) -> int:
    """Ogg's CRC32 is that of zip with all bits in the other order, from 0 and not inverted (RFC 3533, section 6)."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


# ---------------------------------------------------------------- one shard


class _Hashed:
    """A file that is written from beginning to end."""

    def __init__(self, path: Path):
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, content: bytes | memoryview) -> int:
        self.digest.update(content)
        self.bytes += len(content)
        return self.file.write(content)

    def finish(self) -> list:
        """Onto the disk → bytes, SHA-256."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return [self.bytes, self.digest.hexdigest()]


def make_shard(
    folder: Path, shard: int, lines: Sequence[bytes], input_digest: str, codec: str, strict: bool, done: Callable
) -> None:
    """Write one shard under other names, rename its files, and record that it is complete.

    Args:
        done: called after every cut.

    Raises:
        Refused: `strict`, and a cut cannot be used.
    """
    names = shar.cuts_name(shard), shar.audio_name(shard)
    partials = [folder / shar.INDEX / f".{name}" for name in names]
    rejected: list[str] = []
    languages: list[str] = []
    characters: set[str] = set()
    rows: list[tuple] = []
    with _opened(partials) as (cuts, audio), tarfile.open(fileobj=cast(BinaryIO, audio), mode="w|") as tar:
        for cut, content in _usable(lines, codec, strict, rejected, done):
            (supervision,) = cut.supervisions
            line = (json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode()
            crc = zlib.crc32(line, zlib.crc32(content))
            place = _append(tar, cut, content, codec), len(content), cuts.bytes, len(line), crc
            cuts.write(line)
            text, language = supervision.text or "", supervision.language or "und"
            rows.append((place, cut.duration, len(text), language))
            characters.update(text)
            languages.append(language)
        tar.close()
        files = dict(zip(names, (cuts.finish(), audio.finish()), strict=True))
    shar.withdraw(folder, shard)
    for partial, name in zip(partials, names, strict=True):
        partial.replace(folder / name)
    shar.write_whole(_quarantine(folder, shard), "".join(rejected).encode())
    codes = sorted(set(languages))
    entries = np.array([(*row[:3], codes.index(row[3])) for row in rows], shar.ENTRY)
    record = shar.Record(input_digest, len(rows), len(rejected), codes, "".join(sorted(characters)), files)
    shar.write_record(folder, shard, record, entries)


def _usable(lines: Sequence[bytes], codec: str, strict: bool, rejected: list[str], done: Callable) -> Iterator[Encoded]:
    """Those that can be used; the others become lines of `rejected`."""
    for line in lines:
        try:
            yield encoded(line, codec)
        except Rejected as error:
            name = _id_of(line)
            if strict:
                raise Refused(f"--strict: cut {name}: {error}") from error
            rejected.append(f"{' '.join(name.split())}\t{' '.join(str(error).split())}\n")
        done()


def _id_of(line: bytes) -> str:
    try:
        return str(json.loads(line)["id"])
    except (ValueError, KeyError, TypeError):
        return f"? ({line[:40].decode(errors='replace').strip()})"


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[list[_Hashed]]:
    files = [_Hashed(path) for path in paths]
    try:
        yield files
    finally:
        for file in files:
            file.file.close()


def _append(tar: tarfile.TarFile, cut: MonoCut, audio: bytes, codec: str) -> int:
    """Add the audio and after it, as Shar has it, its recording → where the audio's bytes begin."""
    _add(tar, f"{cut.id}.{codec}", audio)
    start = tar.offset - -(-len(audio) // BLOCK) * BLOCK
    _add(tar, f"{cut.id}.json", (json.dumps(_recording(cut).to_dict()) + "\n").encode())
    return start


def _recording(cut: MonoCut) -> Recording:
    assert cut.recording is not None
    return cut.recording


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and no time: the same content gives the same bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _quarantine(folder: Path, shard: int) -> Path:
    return folder / shar.INDEX / f"{shard:06d}.quarantine.tsv"


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
    inputs, cuts = [], 0
    for _, lines in _shards(manifest, settings, "reading the manifest"):
        digest = hashlib.sha256(json.dumps(settings.to_dict()).encode())
        for line in lines:
            digest.update(line)
        inputs.append(digest.hexdigest()[:32])
        cuts += len(lines)
    if not cuts:
        raise UserError(f"manifest {manifest} has no cuts")
    return shar.Plan(cuts, settings.to_dict(), inputs)


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
        functools.partial(make_shard, output, shard, lines, plan.inputs[shard], settings.codec, strict)
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
            print(f"{output} is complete and was verified (--verify reads all of it again)")
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
    lines = b"".join(_quarantine(output, shard).read_bytes() for shard in range(shards))
    shar.write_whole(output / shar.QUARANTINE, b"id\treason\n" + lines)


def _bar(total: int, description: str, **looks: Any) -> tqdm:
    """A progress bar; without a description none. In a log file every refresh is a line: twice a minute is enough."""
    seldom = 0.5 if sys.stderr.isatty() else 30.0  # seconds
    return tqdm(total=total, desc=description, mininterval=seldom, disable=not description, **looks)


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


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.shar", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, help="JSONL of cuts, plain or gzipped")
    parser.add_argument("--output", type=Path, help="folder for the shards, for example data/mls/shar/train")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="only read all shards of FOLDER again")
    parser.add_argument("--codec", choices=sorted(CODECS), default="opus", help="(default: %(default)s)")
    parser.add_argument("--shard-size", type=_positive, default=1000, help="cuts a shard (default: %(default)s)")
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--shard-index", type=int, help="this task's number from 0 (default: SLURM's array task)")
    parser.add_argument("--shard-count", type=int, help="how many tasks share the work (default: SLURM's)")
    parser.add_argument("--strict", action="store_true", help="stop at the first cut that cannot be read")
    parser.add_argument("--retry", action="store_true", help="make shards again that have quarantined cuts")
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
    settings = Settings(args.codec, args.shard_size)
    work = {"jobs": args.jobs, "task": task, "tasks": tasks}
    export(args.manifest, args.output, settings, **work, strict=args.strict, retry=args.retry)


if __name__ == "__main__":
    run(main)
