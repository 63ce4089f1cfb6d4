"""Augmentation of speed and loudness."""

from dataclasses import dataclass

import numpy as np
from lhotse.augmentation.torchaudio import Speed, Volume

from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.data.augmentation.perturbation import Perturbation


@dataclass(frozen=True, kw_only=True)
class PerturbSpeed(Perturbation):
    """Plays faster or slower, which shifts the pitch as well.

    Args:
        factors: Speeds to choose from; 0.9 makes an utterance longer by 1/0.9.
        weights: Weights of the factors; equal by default.
    """

    factors: tuple[float, ...] = (0.9, 1.0, 1.1)
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.factors or not all(0.5 <= factor <= 2 for factor in self.factors):
            raise self._error(f"factors {list(self.factors)}: give one or more between 0.5 and 2")
        weights = self.weights
        if weights is not None and (len(weights) != len(self.factors) or min(weights) < 0 or not sum(weights) > 0):
            raise self._error(f"weights {list(weights)}: give one for each of the {len(self.factors)} factors, >= 0")

    @property
    def duration_factor(self) -> float:
        return max(1.0, 1 / min(self.factors))

    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        shares = None if self.weights is None else np.array(self.weights) / sum(self.weights)
        factor = float(generator.choice(self.factors, p=shares))
        return samples if factor == 1 else Speed(factor)(samples, SAMPLING_RATE), f"speed {factor:g}"


@dataclass(frozen=True, kw_only=True)
class PerturbGain(Perturbation):
    """Makes louder or softer. Filter banks are normalised per utterance, so it only changes what codecs do.

    Args:
        gain_db: Range of the gain in dB.
    """

    gain_db: tuple[float, float] = (-12.0, 6.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("gain_db", -60, 60)

    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        gain = generator.uniform(*self.gain_db)
        return Volume(10 ** (gain / 20))(samples, SAMPLING_RATE), f"gain {gain:+.1f} dB"
