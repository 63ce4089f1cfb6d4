"""Augmentation by codecs: Opus, MP3 and the telephone's μ-law."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from lhotse.augmentation.compress import Compress
from lhotse.augmentation.torchaudio import Narrowband
from torchaudio.functional import mu_law_decoding, mu_law_encoding

from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.errors import UserError, in_one_line
from speechllm_pl.data.augmentation.perturbation import Perturbation


@dataclass(frozen=True, kw_only=True)
class CompressOpus(Perturbation):
    """Encodes with Opus and decodes again, aligned with the original.

    Args:
        kbps: Range of the bit rate, in kbit/s.
    """

    kbps: tuple[float, float] = (8.0, 32.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("kbps", 6, 256)

    def check(self) -> None:
        _check_codec(Compress("opus", 0.9), "Opus")

    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        kbps = generator.uniform(*self.kbps)
        opus = Compress("opus", (256 - kbps) / 250)  # libsndfile's level 0 … 1 stands for 256 … 6 kbit/s
        return _coded(opus, samples), f"Opus at {kbps:.0f} kbit/s"


@dataclass(frozen=True, kw_only=True)
class CompressMp3(Perturbation):
    """Encodes with MP3 of variable bit rate and decodes again, aligned with the original.

    Args:
        quality: Range of LAME's VBR quality, from 0, the best, to 9.9.
    """

    quality: tuple[float, float] = (4.0, 9.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("quality", 0, 9.9)

    def check(self) -> None:
        _check_codec(Compress("mp3", 0.5), "MP3")

    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        quality = generator.uniform(*self.quality)
        return _coded(Compress("mp3", quality / 10), samples), f"MP3 of VBR quality {quality:.1f}"


@dataclass(frozen=True, kw_only=True)
class CompressMuLaw(Perturbation):
    """Encodes with μ-law of 8 bits and decodes again.

    Args:
        telephone: Code at 8 kHz, as telephones do, which takes everything above 4 kHz away.
    """

    telephone: bool = True

    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        if self.telephone:
            return _coded(Narrowband("mulaw", SAMPLING_RATE, restore_orig_sr=True), samples), "μ-law at 8 kHz"
        return _coded(_mu_law, samples), "μ-law at 16 kHz"


def _coded(codec: Callable[[np.ndarray, int], np.ndarray], samples: np.ndarray) -> np.ndarray:
    """Encode and decode `(N,)` samples. Sums with noise that exceed full scale are attenuated, not clipped."""
    peak = max(1.0, float(np.abs(samples).max(initial=0.0)))
    coded = codec(samples[None] / np.float32(peak), SAMPLING_RATE)[0] * peak
    return np.pad(coded, (0, max(0, len(samples) - len(coded))))[: len(samples)]


def _mu_law(samples: np.ndarray, _: int) -> np.ndarray:
    """Encode and decode with 8 bits at any sampling rate; Lhotse supports only 8 kHz."""
    return mu_law_decoding(mu_law_encoding(torch.from_numpy(samples), 256), 256).numpy()


def _check_codec(codec: Compress, name: str) -> None:
    """Check that libsndfile supports a codec.

    Raises:
        UserError: it was built without this codec.
    """
    try:
        codec(np.zeros((1, 1600), np.float32), SAMPLING_RATE)
    except Exception as error:  # libsndfile's, or its wrapper's about an unknown format
        raise UserError(
            f"Compress{name.title()} in data.augmentations: libsndfile {soundfile.__libsndfile_version__} of this"
            f" machine cannot write {name} ({in_one_line(error)}): pip install -U soundfile, or leave it out"
        ) from error
