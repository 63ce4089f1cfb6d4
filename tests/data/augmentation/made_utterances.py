"""Utterances that are made up for tests of augmentation, and all augmentations together."""

from pathlib import Path

import numpy as np
import scipy.signal

from speechllm_pl.data.augmentation import (
    AddNoise,
    Augmentation,
    CompressMp3,
    CompressMuLaw,
    CompressOpus,
    Concatenate,
    PerturbGain,
    PerturbSpeed,
    Reverberate,
    augment,
)
from speechllm_pl.data.utterance import Utterance

RATE = 16_000


def utterance(name: str, seconds: float = 1.0, language: str = "en", kind: str = "noise") -> Utterance:
    """Speech-like: noise between 100 and 3500 Hz that comes and goes four times a second; or a tone of 1 kHz."""
    time = np.arange(round(seconds * RATE)) / RATE
    if kind == "tone":
        samples = 0.3 * np.sin(2 * np.pi * 1000 * time)
    else:
        band = scipy.signal.butter(4, [100, 3500], "bandpass", fs=RATE, output="sos")
        white = np.random.default_rng(sum(name.encode())).standard_normal(len(time))
        samples = 0.2 * scipy.signal.sosfilt(band, white) * (1.1 + np.sin(2 * np.pi * 4 * time))
    return Utterance(name, samples.astype(np.float32), f"text of {name}", language)


def changed(augmentation: Augmentation, given: Utterance, epoch: int = 0) -> Utterance:
    (result,) = augment([given], [augmentation], seed=0, epoch=epoch)
    return result


def batch(lengths: list[float], languages: str = "") -> list[Utterance]:
    return [
        utterance(f"u{number}", seconds, languages[number] if languages else "en")
        for number, seconds in enumerate(lengths)
    ]


def everything(noises: Path) -> list[Augmentation]:
    return [
        PerturbSpeed(),
        Reverberate(probability=0.5),
        AddNoise(folder=str(noises), probability=0.7),
        PerturbGain(),
        CompressOpus(probability=0.5),
        CompressMp3(probability=0.5),
        CompressMuLaw(probability=0.5),
        Concatenate(probability=0.7),
    ]
