"""Real-time factor of decoding, one utterance at a time and in batches, for trained runs.

    python benchmarks/decoding_speed.py runs/demo/pretrain_ctc runs/demo/finetune

The real-time factor is seconds of work (features, encoder, decoding; not reading) per second of audio.
"""

import argparse
from pathlib import Path

import torch
from machine import describe

from speechllm_pl.apps.recognition import recognize
from speechllm_pl.data.manifest import read_manifest
from speechllm_pl.recognition.recognizer import Recognizer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--cuts", type=Path, default=Path("data/spoken_numbers/test.jsonl.gz"))
    parser.add_argument("--utterances", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cuts = read_manifest(args.cuts)[: args.utterances]
    print(f"{describe(args.threads)}, fp32")
    for run in args.runs:
        recognizer = Recognizer.load(run / "checkpoints/best.ckpt")
        done = {seconds: recognize(recognizer, cuts, seconds, precision="32-true") for seconds in (0.1, 30.0, 120.0)}
        factors = {batch: (each.seconds - each.waiting_seconds) / each.audio_seconds for batch, each in done.items()}
        singly = factors[0.1]
        for seconds, factor in factors.items():
            batches = "one at a time" if seconds < 1 else f"batches of {seconds:.0f} s"
            print(f"{run}, {batches}: real-time factor {factor:.4f}, {singly / factor:.1f} times one at a time")


if __name__ == "__main__":
    main()
