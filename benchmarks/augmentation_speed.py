"""What augmentation costs in the loader's workers, and how often a batch can be joined.

    python benchmarks/augmentation_speed.py

Measures each augmentation at probability 1 in audio-seconds per second of one CPU core, on made-up utterances of 10 s,
and computes from that what the shipped sets reach with their probabilities. Then counts what share of the batches
`Concatenate` joins, by the utterances in a batch and the languages among them.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import yaml
from machine import describe

from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.data.augmentation import Augmentation, Concatenate, augment
from speechllm_pl.data.utterance import Utterance

CONF = Path(__file__).parents[1] / "conf" / "augment"
SECONDS = 10.0
BATCHES = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--utterances", type=int, default=40)
    parser.add_argument("--noise", help="folder of noise recordings; without one, what needs noise is left out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(describe(1))
    sets = {path.stem: configured(path, args.noise) for path in sorted(CONF.glob("*.yaml"))}
    single = {type(each).__name__: [replace(each, probability=1.0)] for chosen in sets.values() for each in chosen}
    print("audio-seconds per CPU second")
    speeds = {name: speed(chosen, args.utterances) for name, chosen in single.items()}
    for name, chosen in sets.items():  # not measured: what is drawn for so few utterances would decide it
        speeds[f"AUGMENT={name}"] = 1 / sum(each.probability / speeds[type(each).__name__] for each in chosen)
    for name, found in speeds.items():
        print(f"  {name:18} {found:9,.0f}")
    print(f"batches joined, of {BATCHES}: {'languages':>12} 1     3     8")
    for size in (5, 6, 8, 16, 32, 50):
        shares = "  ".join(f"{share_joined(size, languages):4.0%}" for languages in (1, 3, 8))
        print(f"  {size:3} utterances of {SECONDS:.0f} s {shares:>32}")


def configured(path: Path, noise: str | None) -> list[Augmentation]:
    """The augmentations of a shipped file, with the noise that there is."""
    made = []
    for each in yaml.safe_load(path.read_text())["data"]["augmentations"]:
        module, _, name = each["class_path"].rpartition(".")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in each["init_args"].items()}
        if "folder" in values:
            values["folder"] = noise
        if noise or "folder" not in values:
            made.append(getattr(import_module(module), name)(**values))
    return made


def speed(augmentations: Sequence[Augmentation], count: int) -> float:
    rng = np.random.default_rng(0)
    given = [made_up(f"u{number}", "en", SECONDS, rng) for number in range(count)]
    augment(given[:2], augmentations, seed=0, epoch=0)  # filters are computed, folders are read
    started = time.process_time()
    augment(given, augmentations, seed=0, epoch=1)
    return count * SECONDS / (time.process_time() - started)


def share_joined(size: int, languages: int) -> float:
    rng = np.random.default_rng(0)
    joined = 0
    for number in range(BATCHES):
        seconds = rng.uniform(0.93, 1.0, size) * SECONDS  # of one bucket
        codes = rng.integers(languages, size=size)
        given = [silent(f"{number}-{row}", str(codes[row]), seconds[row]) for row in range(size)]
        joined += len(augment(given, [Concatenate()], seed=0, epoch=0)) < size
    return joined / BATCHES


def made_up(name: str, language: str, seconds: float, rng: np.random.Generator) -> Utterance:
    samples = 0.1 * rng.standard_normal(round(seconds * SAMPLING_RATE), np.float32)
    return silent(name, language, 0.0)._replace(samples=samples)


def silent(name: str, language: str, seconds: float) -> Utterance:
    return Utterance(name, np.zeros(round(seconds * SAMPLING_RATE), np.float32), "", language)


if __name__ == "__main__":
    main()
