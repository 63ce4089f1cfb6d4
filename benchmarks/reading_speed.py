"""How fast batches of speech are read, by storage and number of loader processes, against decoding alone.

    python benchmarks/reading_speed.py --folder /scratch --steps-per-second 1 2 4

The limit is a bare loop of `soundfile.read` over the same utterances in as many processes as the loader has: no
manifest, no batches, nothing handed over. Beside it the real `SpeechDataset` in the real `DataLoader`, from files in
WAV, FLAC and Opus and from Shar in FLAC and Opus. Limit and loader take turns, storage by storage, `--repeats` times;
a ratio is the median of the ratios of neighbours, since other programs disturb both alike. All is read from memory
(the files have just been read): disks are not measured.

Utterances are 10 to 20 s long, as in MLS: cut at random from a recording (`--recording`, of which any sampling rate
will do), or, without one, noise that rises and falls as syllables do.

Exits with status 1 if with two processes a storage is below 90 % of its limit.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment
from machine import describe
from scipy.signal import resample_poly

from data_prep.shar.encoding import CODECS
from data_prep.shar.export import Settings, export
from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.cuts import Cuts, read_cuts
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches
from speechllm_pl.data.loader import loader

BAR = 0.9
RATE = 16_000  # Hz
STORAGES = ("wav", "flac", "opus", "shar flac", "shar opus")
FORMS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
STEP_SECONDS = 80.0  # audio of a step of stage 2 on one of the paper's 64 A100s
RECORDING = Path(os.environ.get("SPEECHLLM_DATA", "../shared/data")) / "long-form" / "udhr_en.mp3"


class Speed(NamedTuple):
    """Audio-seconds per second that a number of processes read from one storage, one value per repeat."""

    limit: list[float]
    loader: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(ours / bare for ours, bare in zip(self.loader, self.limit, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where there is room: 200 MB for 200 utterances")
    parser.add_argument("--recording", type=Path, default=RECORDING, help="speech to cut from (default: %(default)s)")
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--storages", choices=STORAGES, nargs="+", default=STORAGES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="that a measurement takes, about")
    parser.add_argument("--max-duration", type=float, default=STEP_SECONDS, help="seconds of audio a batch")
    parser.add_argument("--steps-per-second", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0])
    args = parser.parse_args()
    folder = args.folder / "reading_speed"
    print(describe(1))
    try:
        source = write_corpus(folder, args.recording, args.utterances)
        speeds = measure(folder, args)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{args.utterances} utterances of 10 to 20 s, {source}; batches of {args.max_duration:g} s")
    print_table(speeds)
    print_cores(speeds, args.steps_per_second, args.max_duration)
    below = [storage for (storage, workers), speed in speeds.items() if workers == 2 and speed.ratio < BAR]
    if any(workers == 2 for _, workers in speeds):
        print(
            f"bar of {BAR:.0%} of decoding with two processes: {'NOT KEPT by ' + ', '.join(below) if below else 'kept'}"
        )
    sys.exit(1 if below else 0)


# the corpus


def write_corpus(folder: Path, recording: Path, utterances: int) -> str:
    """The same utterances in all storages → what they were made of."""
    shutil.rmtree(folder, ignore_errors=True)
    draw = np.random.default_rng(0)
    speech = read_speech(recording) if recording.is_file() else syllables(300.0, draw)
    lengths = draw.integers(10 * RATE, 20 * RATE, utterances)
    pieces = [speech[start : start + length] for length in lengths for start in [draw.integers(len(speech) - length)]]
    for name, (file_format, subtype) in FORMS.items():
        (folder / name).mkdir(parents=True)
        for number, piece in enumerate(pieces):
            path = folder / name / f"{number:05d}.{name}"
            soundfile.write(path, piece, RATE, format=file_format, subtype=subtype)
        CutSet.from_cuts(map(cut_of, sorted((folder / name).iterdir()))).to_file(folder / f"{name}.jsonl.gz")
    for codec in CODECS:
        with quiet():
            export(folder / f"{codec}.jsonl.gz", folder / f"shar {codec}", Settings(codec, 50))
    return f"cut from {recording.name}" if recording.is_file() else "of noise"


def read_speech(recording: Path) -> np.ndarray:
    """`(N,)` float32, mono, 16 kHz."""
    samples, rate = soundfile.read(recording, dtype="float32", always_2d=True)
    return resample_poly(samples.mean(axis=1), RATE, rate).astype(np.float32)


def syllables(seconds: float, draw: np.random.Generator) -> np.ndarray:
    """`(N,)` float32: low-passed noise, four syllables a second, with pauses."""
    count = int(seconds * RATE)
    noise = np.convolve(draw.standard_normal(count), np.hanning(16), "same")
    beats = np.repeat(draw.random(int(seconds * 4) + 1) ** 2, RATE // 4)[:count]
    return (0.05 * noise * np.convolve(beats, np.hanning(800) / 400, "same")).astype(np.float32)


def cut_of(path: Path):
    cut = Recording.from_file(path, recording_id=path.stem).to_cut().with_id(path.stem)
    text = "as many letters as are spoken in such a time, more or less " * 3
    cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, cut.duration, text=text, language="en", speaker="s")]
    return cut


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporting program prints."""
    out, err = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err


# measurements


def measure(folder: Path, args: argparse.Namespace) -> dict[tuple[str, int], Speed]:
    speeds = {(storage, workers): Speed([], []) for storage in args.storages for workers in args.workers}
    loads = {storage: load_of(folder, storage, args) for storage in args.storages}
    for repeat in range(args.repeats + 1):
        for (storage, workers), speed in speeds.items():
            paths, cuts, plan, times = loads[storage]
            pair = [
                (speed.limit, lambda: decoding_alone(paths * times, max(workers, 1))),  # noqa: B023
                (speed.loader, lambda: through_loader(cuts, plan * times, workers)),  # noqa: B023
            ]
            for values, run in pair if repeat % 2 else reversed(pair):
                value = run()
                if repeat:  # the first time warms up
                    values.append(value)
        print(f"\rrepeat {repeat} of {args.repeats} done", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return speeds


def load_of(folder: Path, storage: str, args: argparse.Namespace) -> tuple[list[Path], Cuts, list, int]:
    """Return files to decode, cuts, planned batches, and how many times to read all of it."""
    codec = storage.split()[-1]
    paths = sorted((folder / codec).iterdir())
    cuts = read_cuts(folder / (storage if " " in storage else f"{storage}.jsonl.gz"))
    plan = list(EpochBatches(Buckets(cuts.durations, args.max_duration, 10)))
    speed = decoding_alone(paths, 1)
    times = max(1, round(args.seconds * speed / float(cuts.durations.sum())))
    return paths, cuts, plan, times


def decoding_alone(paths: Sequence[Path], processes: int) -> float:
    """Audio-seconds a second of the bare loop, in `processes` at once."""
    context = multiprocessing.get_context("fork")
    together = context.Barrier(processes + 1)
    results = context.SimpleQueue()

    def decode(share: Sequence[Path]) -> None:
        together.wait()
        samples = sum(len(soundfile.read(path, dtype="float32")[0]) for path in share)
        results.put((samples, time.perf_counter()))  # one clock for all processes

    workers = [context.Process(target=decode, args=(paths[rank::processes],)) for rank in range(processes)]
    for worker in workers:
        worker.start()
    together.wait()
    started = time.perf_counter()
    samples, ends = zip(*(results.get() for _ in workers), strict=True)
    for worker in workers:
        worker.join()
    return sum(samples) / RATE / (max(ends) - started)


def through_loader(cuts: Cuts, plan: Sequence, workers: int) -> float:
    """Audio-seconds a second of the batches that arrive in this process, once its workers have started."""
    # As many batches are read ahead when the clock stops as when it starts.
    first, last = plan[: workers + 1], plan[: 2 * workers]
    batches = iter(loader(SpeechDataset(cuts), [*first, *plan, *last], workers))
    for _ in first:
        next(batches)
    started = time.perf_counter()
    audio_seconds = sum(batch.seconds for batch in islice(batches, len(plan)))
    return audio_seconds / (time.perf_counter() - started)


# what is printed


def print_table(speeds: dict[tuple[str, int], Speed]) -> None:
    print("\naudio-seconds a second, medians; ratio to decoding alone in as many processes (least, most)")
    print(f"{'storage':<11}{'workers':>8}{'processes':>11}{'decoding':>10}{'loader':>9}{'ratio':>8}")
    for (storage, workers), speed in speeds.items():
        ratios = [ours / bare for ours, bare in zip(speed.loader, speed.limit, strict=True)]
        print(
            f"{storage:<11}{workers:>8}{max(workers, 1):>11}{statistics.median(speed.limit):>10,.0f}"
            f"{statistics.median(speed.loader):>9,.0f}{speed.ratio:>8.0%}  ({min(ratios):.0%}, {max(ratios):.0%})"
        )


def print_cores(speeds: dict[tuple[str, int], Speed], steps_per_second: Sequence[float], seconds: float) -> None:
    """What a GPU's loader needs, by how fast the GPU goes through its steps."""
    workers = max(workers for _, workers in speeds)
    print(
        f"\ncores a GPU needs at {STEP_SECONDS:g} s of audio a step (64 A100s: {64 * STEP_SECONDS:,g} s over all),"
        f"\nfrom the loader's speed a process with {workers} workers. Assumed: cores like this one, one worker a core,"
        "\nstorage that delivers the bytes, no augmentation; the training process's own core is not counted."
    )
    print(f"{'steps a second':<18}" + "".join(f"{storage:>11}" for storage in STORAGES))
    for rate in steps_per_second:
        cells = []
        for storage in STORAGES:
            speed = speeds.get((storage, workers))
            cores = rate * STEP_SECONDS / (statistics.median(speed.loader) / max(workers, 1)) if speed else None
            cells.append("" if cores is None else f"{cores:.3f}")
        print(f"{rate:<18g}" + "".join(f"{cell:>11}" for cell in cells))


if __name__ == "__main__":
    main()
