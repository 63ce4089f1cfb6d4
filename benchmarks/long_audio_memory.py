"""Peak memory of transcribing ten minutes and eight hours of a recording, each in a process of its own.

python benchmarks/long_audio_memory.py --checkpoint runs/demo/finetune --audio speech.mp3

Prints the largest resident size of both, in MiB, and their ratio. Eight hours of audio take the tiny system about half
an hour on a CPU; `--hours 1` is shorter.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile


def repeated(audio: Path, seconds: float, target: Path) -> None:
    """Write a recording again and again, until it lasts so long."""
    samples, rate = soundfile.read(audio, dtype="int16", always_2d=True)
    left = round(seconds * rate)
    with soundfile.SoundFile(target, "w", rate, samples.shape[1], "PCM_16") as file:
        while left > 0:
            file.write(samples[:left])
            left -= len(samples)


def transcribed(audio: Path, checkpoint: str, options: list[str]) -> dict[str, float]:
    """Peak in MiB, wall time in seconds, and how far the transcript reaches, of a process that transcribes a file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("speechllm"), "transcribe", audio, "--checkpoint", checkpoint]
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--output_dir", folder, "--format", "json", *options], stdout=sys.stderr)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            sys.exit(f"{' '.join(map(str, command))} ended with status {status}")
        (written,) = Path(folder).glob("*.json")
        transcript = json.loads(written.read_text())
    ends = [word["end_seconds"] for piece in transcript["pieces"] for word in piece["words"]]
    return {
        "peak_mib": usage.ru_maxrss / 1024,
        "seconds": seconds,
        "audio_seconds": transcript["seconds"],
        "words": len(ends),
        "monotone": ends == sorted(ends),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--audio", type=Path, required=True, help="recording of speech to repeat")
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("options", nargs="*", help="further options of transcribe, after --")
    given = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in (("10 minutes", 600.0), (f"{given.hours:g} hours", given.hours * 3600)):
            path = Path(folder, "long.wav")
            repeated(given.audio, seconds, path)
            found = transcribed(path, given.checkpoint, given.options)
            peaks.append(found["peak_mib"])
            factor = found["audio_seconds"] / found["seconds"]
            print(
                f"{name}: {found['peak_mib']:.0f} MiB, RTFx {factor:.1f}, {found['words']} words to"
                f" {found['audio_seconds']:.0f} s, times {'monotone' if found['monotone'] else 'NOT MONOTONE'}",
                flush=True,
            )
    print(f"ratio of the peaks: {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
