"""How fast a run finds its place in twelve million cuts: at the start, and resumed anywhere in an epoch.

    python benchmarks/data_position.py --folder /scratch

Writes a manifest of made-up cuts (durations and texts like those of MLS, no audio), indexes it once, and then
measures in fresh processes what a training process does between its imports and its first batch: open the
manifest, leave out what is too long, plan the epoch, deserialise the batch's cuts. Lhotse's own sampler is measured
on a smaller manifest, as it has to pass all cuts before the one it resumes at; its figure for the large one is
extrapolated.

Exits with status 1 if a start or a restoring takes more than 10 s, or a process more than 2 GB.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from machine import describe
from tqdm import tqdm

MOST_SECONDS = 10.0
MOST_BYTES = 2e9
LHOTSE_CUTS = 100_000
EPOCH = 3
MAX_DURATION = 500.0  # seconds, the paper's batch in stage 1
LINE = (
    '{{"id": "{id}", "start": 0.0, "duration": {seconds}, "channel": 0, "supervisions": [{{"id": "{id}",'
    ' "recording_id": "{id}", "start": 0.0, "duration": {seconds}, "channel": 0, "text": "{text}",'
    ' "language": "en", "speaker": "{speaker}"}}], "type": "MonoCut"}}\n'
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where there is room: 6 GB for 12 million cuts")
    parser.add_argument("--cuts", type=int, default=12_000_000)
    parser.add_argument("--keep", action="store_true", help="leave the manifest and its index there")
    parser.add_argument("--position", type=float, help=argparse.SUPPRESS)  # one measurement, in a process of its own
    args = parser.parse_args()
    if args.position is not None:
        print(json.dumps(reach(args.folder, args.position)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    print(describe(1))
    try:
        kept = measure(args.folder, args.cuts)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder / "train.jsonl.index", ignore_errors=True)
            for made in ("train.jsonl", "lhotse.jsonl"):
                (args.folder / made).unlink(missing_ok=True)
    sys.exit(0 if kept else 1)


def measure(folder: Path, count: int) -> bool:
    """Print all figures → whether the bars are kept."""
    manifest = folder / "train.jsonl"
    if not manifest.exists():
        write_manifest(manifest, count)
    seconds = reach_anew(folder, 0.0)["seconds"]
    print(f"{count:,} cuts, {manifest.stat().st_size / 1e9:.1f} GB: indexed and started in {seconds:.0f} s, once")
    kept, slowest = True, 0.0
    for position in (0.0, 0.001, 0.5, 0.999):
        found = reach_anew(folder, position)
        what = f"restored at batch {found['batch']:,} of {found['batches']:,}" if position else "started"
        print(
            f"{what}: {found['seconds']:.2f} s, peak {found['bytes'] / 1e9:.2f} GB, of which"
            f" {found['bytes_of_imports'] / 1e9:.2f} GB are imports; the batch has {found['utterances']} cuts"
        )
        slowest = max(slowest, found["seconds"])
        kept &= found["seconds"] <= MOST_SECONDS and found["bytes"] <= MOST_BYTES
    compare_with_lhotse(folder, count, slowest)
    print(f"bars of {MOST_SECONDS:.0f} s and {MOST_BYTES / 1e9:.0f} GB: {'kept' if kept else 'NOT KEPT'}")
    return kept


def write_manifest(path: Path, count: int) -> None:
    """Cuts of 5 to 20 s, 15 on average, with 2.7 words a second."""
    draw = random.Random(0)
    syllables = ["ba", "len", "to", "ri", "sak", "mu", "fen", "do", "gri", "el", "pa", "nur"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(2000)]
    texts = [" ".join(draw.choices(words, k=120)) for _ in range(1000)]
    durations = np.random.default_rng(0).normal(15, 3.5, count).clip(5, 20).round(2)
    with path.open("w") as file:
        for number, seconds in enumerate(tqdm(durations.tolist(), desc="writing", mininterval=5, disable=None)):
            text = texts[number % 1000][: int(seconds * 13)].rstrip()
            file.write(LINE.format(id=f"mls-{number:08d}", seconds=seconds, text=text, speaker=number % 5000))


def reach_anew(folder: Path, position: float) -> dict:
    """What `reach` finds in a new process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--position", str(position)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)


def reach(folder: Path, position: float) -> dict:
    """What a training process does before it reads audio, `position` (0 to 1) of an epoch being done."""
    from speechllm_pl.data.datamodule import SpeechDataModule
    from speechllm_pl.data.epoch_plan import EpochBatches

    imports, started = peak_bytes(), time.perf_counter()
    data = SpeechDataModule(str(folder), train="train.jsonl", max_duration=MAX_DURATION, max_seconds=19.9)
    buckets, cuts = data.buckets("train"), data.cuts("train")
    start = int(position * len(buckets))
    planned = next(iter(EpochBatches(buckets, data.mixture.draw(EPOCH), epoch=EPOCH, start=start)))
    chosen = [cuts[int(index)] for index in planned.indices]
    assert len(chosen)
    assert all(cut.duration <= 19.9 for cut in chosen)
    return {
        "seconds": time.perf_counter() - started,
        "bytes": peak_bytes(),
        "bytes_of_imports": imports,
        "batch": start,
        "batches": len(buckets),
        "utterances": len(chosen),
    }


def peak_bytes() -> int:
    """The most memory that this process has had. Not from getrusage, which counts its parent's before exec too."""
    (line,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    return int(line) * 1024


def compare_with_lhotse(folder: Path, count: int, ours: float) -> None:
    """Lhotse's sampler resumes by going through all the batches before."""
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler

    warnings.simplefilter("ignore")
    path = folder / "lhotse.jsonl"
    some = min(count, LHOTSE_CUTS)
    write_manifest(path, some)

    def sampler() -> DynamicBucketingSampler:
        return DynamicBucketingSampler(
            CutSet.from_jsonl_lazy(path), max_duration=MAX_DURATION, num_buckets=10, shuffle=True, rank=0, world_size=1
        )

    stopped = sampler()
    for _ in stopped:
        pass
    state = stopped.state_dict()  # at the end of an epoch
    started = time.perf_counter()
    resumed = sampler()
    resumed.load_state_dict(state)
    next(iter(resumed), None)
    seconds = time.perf_counter() - started
    extrapolated = seconds * count / some
    print(
        f"Lhotse's DynamicBucketingSampler: {seconds:.1f} s to restore after {some:,} cuts; extrapolated to"
        f" {count:,}: {extrapolated:.0f} s, {extrapolated / ours:.0f} times as long"
    )


if __name__ == "__main__":
    main()
