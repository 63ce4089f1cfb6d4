"""Base classes of augmentations, and the random numbers from which they draw."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from speechllm_pl.core.errors import UserError, in_one_line
from speechllm_pl.data.utterance import Utterance

log = logging.getLogger(__name__)

Generators = Callable[[str, int], np.random.Generator]
"""Function from an utterance's id and its copy's number to its random generator."""


def augment(
    utterances: list[Utterance], augmentations: Sequence["Augmentation"], seed: int, epoch: int
) -> list[Utterance]:
    """Apply augmentations in order. `Concatenate` returns fewer and longer utterances."""
    for place, augmentation in enumerate(augmentations):

        def generators(name: str, copy: int, place: int = place) -> np.random.Generator:
            digest = hashlib.sha256(name.encode()).digest()  # Python's own hash differs between processes
            entropy = (seed, epoch, place, copy, int.from_bytes(digest, "big"))
            return np.random.default_rng(np.random.SeedSequence(entropy))

        utterances = augmentation.apply(utterances, generators)
    return utterances


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """Base of all augmentations.

    Args:
        probability: Share of the utterances that are changed.
    """

    probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise self._error(f"probability {self.probability} is not between 0 and 1")

    @property
    def duration_factor(self) -> float:
        """Factor by which it may lengthen a batch, padding included; batches are planned for it."""
        return 1.0

    def check(self) -> None:  # noqa: B027  # most need nothing
        """Check requirements at a run's start.

        Raises:
            UserError: one is not met.
        """

    @abstractmethod
    def apply(self, utterances: list[Utterance], generators: Generators) -> list[Utterance]:
        """Change the utterances of a batch."""

    def _check_range(self, name: str, least: float, most: float) -> None:
        low, high = getattr(self, name)
        if low > high:
            raise self._error(f"{name} [{low}, {high}] is reversed: give [{high}, {low}]")
        if not least <= low <= high <= most:
            raise self._error(f"{name} [{low}, {high}] is not within {least} … {most}")

    def _error(self, message: str) -> UserError:
        return UserError(f"{type(self).__name__} in data.augmentations: {message}")


class Perturbation(Augmentation):
    """Base of augmentations that change each utterance by itself."""

    @abstractmethod
    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        """Change `(N,)` float32 samples at 16 kHz, and describe what was drawn."""

    def apply(self, utterances: list[Utterance], generators: Generators) -> list[Utterance]:
        return [self._perhaps(utterance, generators(utterance.id, utterance.copy)) for utterance in utterances]

    def _perhaps(self, utterance: Utterance, generator: np.random.Generator) -> Utterance:
        if generator.random() >= self.probability:
            return utterance
        try:
            samples, drawn = self.change(utterance.samples, generator)
        except UserError:
            raise
        except Exception as error:  # whatever a codec throws: one odd utterance must not end the run
            log.warning("%s left %s as it was: %s", type(self).__name__, utterance.id, in_one_line(error))
            return utterance
        return utterance._replace(samples=samples.astype(np.float32), drawn=(*utterance.drawn, drawn))
