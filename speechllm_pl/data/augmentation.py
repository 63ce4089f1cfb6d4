"""What is done to training utterances before they become a batch: speed, noise, reverberation, gain, codecs, joining.

Everything that is drawn is a function of (data.seed, epoch, utterance id, how often the epoch has had it before) and of
the augmentation's place in the list. So an utterance is changed in the same way whichever rank, worker or resumed run
reads it, and differently the next time. The signal processing is Lhotse's, called on samples, for its transforms of
cuts draw from generators that are shared by all the cuts of a process.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import soundfile
import torch
from lhotse import Recording
from lhotse.audio.mixer import AudioMixer
from lhotse.augmentation.compress import Compress
from lhotse.augmentation.rir import ReverbWithImpulseResponse
from lhotse.augmentation.torchaudio import Narrowband, Speed, Volume
from lhotse.augmentation.utils import FastRandomRIRGenerator
from torchaudio.functional import mu_law_decoding, mu_law_encoding

from speechllm_pl.core.audio.units import SAMPLING_RATE, samples_in
from speechllm_pl.core.errors import UserError, in_one_line
from speechllm_pl.data.noise_and_rooms import draw, impulse_response, recordings_of, stretch
from speechllm_pl.data.utterance import Utterance

log = logging.getLogger(__name__)

Generators = Callable[[str, int], np.random.Generator]
"""From the id of an utterance and its copy's number to where everything about it is drawn from."""


def augment(
    utterances: list[Utterance], augmentations: Sequence["Augmentation"], seed: int, epoch: int
) -> list[Utterance]:
    """Apply augmentations in their order. `Concatenate` makes fewer and longer utterances of those it is given."""
    for place, augmentation in enumerate(augmentations):

        def generators(name: str, copy: int, place: int = place) -> np.random.Generator:
            digest = hashlib.sha256(name.encode()).digest()  # Python's own hash differs between processes
            entropy = (seed, epoch, place, copy, int.from_bytes(digest, "big"))
            return np.random.default_rng(np.random.SeedSequence(entropy))

        utterances = augmentation.apply(utterances, generators)
    return utterances


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """
    Args:
        probability: share of the utterances that are changed.
    """

    probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise self._error(f"probability {self.probability} is not between 0 and 1")

    @property
    def duration_factor(self) -> float:
        """By how much it may lengthen a batch, padding included; batches are planned for that."""
        return 1.0

    def check(self) -> None:  # noqa: B027  # most need nothing
        """At a run's start.

        Raises:
            UserError: something that it needs is not there.
        """

    @abstractmethod
    def apply(self, utterances: list[Utterance], generators: Generators) -> list[Utterance]:
        """The utterances of a batch, changed."""

    def _check_range(self, name: str, least: float, most: float) -> None:
        low, high = getattr(self, name)
        if low > high:
            raise self._error(f"{name} [{low}, {high}] is reversed: give [{high}, {low}]")
        if not least <= low <= high <= most:
            raise self._error(f"{name} [{low}, {high}] is not within {least} … {most}")

    def _error(self, message: str) -> UserError:
        return UserError(f"{type(self).__name__} in data.augmentations: {message}")


class Perturbation(Augmentation):
    """An augmentation of each utterance by itself."""

    @abstractmethod
    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        """`(N,)` float32 samples at 16 kHz → the changed ones, and in words what was drawn."""

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


@dataclass(frozen=True, kw_only=True)
class PerturbSpeed(Perturbation):
    """Plays faster or more slowly, which moves the pitch as well.

    Args:
        factors: to choose from; 0.9 makes an utterance longer by 1/0.9.
        weights: of the factors; equal if none are given.
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
    """Louder or softer. Filter banks are normalised per utterance: what it changes is what codecs make of it.

    Args:
        gain_db: range.
    """

    gain_db: tuple[float, float] = (-12.0, 6.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("gain_db", -60, 60)

    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        gain = generator.uniform(*self.gain_db)
        return Volume(10 ** (gain / 20))(samples, SAMPLING_RATE), f"gain {gain:+.1f} dB"


@dataclass(frozen=True, kw_only=True)
class AddNoise(Perturbation):
    """Adds a stretch of a recording, begun anew as often as the utterance is longer than it.

    Args:
        folder: of noise recordings, folders in it included.
        manifest: instead of a folder, Lhotse recordings or cuts.
        snr_db: range of the signal-to-noise ratio, both taken over the whole utterance.
    """

    folder: str | None = None
    manifest: str | None = None
    snr_db: tuple[float, float] = (0.0, 20.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("snr_db", -40, 100)
        if (self.folder is None) == (self.manifest is None):
            raise self._error("give either a folder of noise recordings or a manifest")

    @cached_property
    def recordings(self) -> tuple[Recording, ...]:
        """Opened once: loader processes are sent them."""
        return recordings_of(self.folder, self.manifest, type(self).__name__)

    def check(self) -> None:
        _ = self.recordings

    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        if not samples.any():
            return samples, "no noise in silence"
        snr = generator.uniform(*self.snr_db)
        noise, name = draw(self.recordings, generator, lambda recording: stretch(recording, len(samples), generator))
        mixer = AudioMixer(samples[None], SAMPLING_RATE)
        mixer.add_to_mix(noise[None], snr=snr)
        return mixer.mixed_audio[0], f"noise {name} at {snr:.1f} dB"


@dataclass(frozen=True, kw_only=True)
class Reverberate(Perturbation):
    """Puts the speaker into a room. The direct sound stays where it was, and the power what it was.

    Args:
        folder: of room impulse responses, folders in it included; their first channels are used.
        manifest: instead of a folder, Lhotse recordings or cuts. With neither, rooms are simulated (FRA-RIR, arXiv
            2208.04101).
        max_t60_seconds: longest time in which simulated rooms go quiet by 60 dB.
    """

    folder: str | None = None
    manifest: str | None = None
    max_t60_seconds: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder is not None and self.manifest is not None:
            raise self._error("give a folder of impulse responses or a manifest, not both")
        if not 0.1 <= self.max_t60_seconds <= 5:
            raise self._error(f"max_t60_seconds {self.max_t60_seconds} is not within 0.1 … 5")

    @cached_property
    def recordings(self) -> tuple[Recording, ...]:
        """Opened once: loader processes are sent them. None, where rooms are simulated."""
        given = self.folder or self.manifest
        return recordings_of(self.folder, self.manifest, type(self).__name__) if given else ()

    def check(self) -> None:
        _ = self.recordings

    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        if self.recordings:
            response, drawn = draw(self.recordings, generator, impulse_response)
        else:
            response, drawn = self._simulated(generator)
        # Lhotse takes the highest sample for the direct sound, which may be a trough just as well.
        response = response * np.sign(response[np.abs(response).argmax()])
        reverberated = ReverbWithImpulseResponse(rir_generator=lambda nsource: response[None])
        return reverberated(samples[None], SAMPLING_RATE)[0], f"room {drawn}"

    def _simulated(self, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        room, source, images = (int(seed) for seed in generator.integers(2**31, size=3))
        simulate = FastRandomRIRGenerator(
            SAMPLING_RATE, max_T60=self.max_t60_seconds, room_seed=room, source_seed=source
        )
        with torch.random.fork_rng(devices=[]):  # Lhotse draws the images of the source from torch's generator
            torch.manual_seed(images)
            return simulate(nsource=1)[0], f"simulated from {room}"


@dataclass(frozen=True, kw_only=True)
class CompressOpus(Perturbation):
    """Through Opus and back, in time with the original.

    Args:
        kbps: range of the bit rate, in kbit/s.
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
    """Through MP3 of variable bit rate and back, in time with the original.

    Args:
        quality: range of LAME's VBR quality, from 0, the best, to 9.9.
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
    """Through 8 bits of μ-law and back.

    Args:
        telephone: at 8 kHz, as telephones do, which takes everything above 4 kHz away.
    """

    telephone: bool = True

    def change(self, samples: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        if self.telephone:
            return _coded(Narrowband("mulaw", SAMPLING_RATE, restore_orig_sr=True), samples), "μ-law at 8 kHz"
        return _coded(_mu_law, samples), "μ-law at 16 kHz"


@dataclass(frozen=True, kw_only=True)
class Concatenate(Augmentation):
    """Joins utterances of one language that came into the same batch, and their texts: fewer and longer rows.

    A batch is left as it is where it would become longer than `room` allows with its padding: rows that found no
    partner of their language are padded to the length of those that did. Nothing is dropped or cut off.
    What a batch is made of does not depend on ranks, workers or resuming, so this does not either.

    Args:
        probability: share of the batches whose utterances are joined.
        max_seconds: of a joined utterance.
        pause_seconds: of silence between two. From 0.2 s on CTC has one frame more than for the two apart, which it
            needs where the next begins with the token that the last one ended with.
        room: by which factor a batch may grow, padding included; batches are planned shorter by it.
    """

    max_seconds: float = 30.0
    pause_seconds: float = 0.2
    room: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.max_seconds > 0:
            raise self._error(f"max_seconds {self.max_seconds} must be above 0")
        if not 0.2 <= self.pause_seconds <= 10:
            raise self._error(f"pause_seconds {self.pause_seconds} is not within 0.2 … 10")
        if not 1 <= self.room <= 3:
            raise self._error(f"room {self.room} is not within 1 … 3")

    @property
    def duration_factor(self) -> float:
        return self.room

    def apply(self, utterances: list[Utterance], generators: Generators) -> list[Utterance]:
        generator = generators(
            "+".join(utterance.id for utterance in utterances), sum(each.copy for each in utterances)
        )
        if len(utterances) < 2 or generator.random() >= self.probability:
            return utterances
        shuffled = [utterances[i] for i in generator.permutation(len(utterances))]
        longest = max(len(utterance.samples) for utterance in utterances)
        allowed = self.room * len(utterances) * longest
        allowed_text = self.room * len(utterances) * max(len(utterance.text) for utterance in utterances)
        most = min(len(utterances), int(self.max_seconds * SAMPLING_RATE / longest))
        for pieces in range(int(generator.integers(2, max(most, 2) + 1)), 1, -1):
            rows = self._rows(shuffled, pieces)
            fits = len(rows) * max(map(self._length, rows)) <= allowed
            if fits and len(rows) < len(utterances) and len(rows) * max(map(_characters, rows)) <= allowed_text:
                return [self._joined(row) for row in rows]
        return utterances

    def _rows(self, utterances: list[Utterance], pieces: int) -> list[list[Utterance]]:
        """Which utterances to join: at most `pieces` of one language, not longer than `max_seconds` together."""
        rows: list[list[Utterance]] = []
        unfinished: dict[str, list[Utterance]] = {}
        for utterance in utterances:
            row = unfinished.get(utterance.language, [])
            too_long = self._length([*row, utterance]) > self.max_seconds * SAMPLING_RATE
            if not row or len(row) == pieces or too_long:
                row = unfinished[utterance.language] = []
                rows.append(row)
            row.append(utterance)
        return rows

    @property
    def _pause(self) -> int:
        return samples_in(self.pause_seconds)

    def _length(self, row: list[Utterance]) -> int:
        """In samples."""
        return sum(len(utterance.samples) for utterance in row) + (len(row) - 1) * self._pause

    def _joined(self, row: list[Utterance]) -> Utterance:
        if len(row) == 1:
            return row[0]
        silence = np.zeros(self._pause, np.float32)
        parts = [part for utterance in row for part in (silence, utterance.samples)][1:]
        id_ = "+".join(utterance.id for utterance in row)
        text = " ".join(utterance.text for utterance in row if utterance.text)
        drawn = (*(words for utterance in row for words in utterance.drawn), f"{len(row)} utterances joined")
        return Utterance(id_, np.concatenate(parts), text, row[0].language, drawn=drawn)


def _characters(row: list[Utterance]) -> int:
    """Of the transcripts; the spaces between them go into the tokens that follow."""
    return sum(len(utterance.text) for utterance in row)


# codecs


def _coded(codec: Callable[[np.ndarray, int], np.ndarray], samples: np.ndarray) -> np.ndarray:
    """`(N,)` → `(N,)`. What is beyond full scale, as sums with noise may be, is coded at a lower level, unclipped."""
    peak = max(1.0, float(np.abs(samples).max(initial=0.0)))
    coded = codec(samples[None] / np.float32(peak), SAMPLING_RATE)[0] * peak
    return np.pad(coded, (0, max(0, len(samples) - len(coded))))[: len(samples)]


def _mu_law(samples: np.ndarray, _: int) -> np.ndarray:
    """In 8 bits and back, at whatever sampling rate: Lhotse has it at 8 kHz only."""
    return mu_law_decoding(mu_law_encoding(torch.from_numpy(samples), 256), 256).numpy()


def _check_codec(codec: Compress, name: str) -> None:
    """
    Raises:
        UserError: libsndfile was built without this codec.
    """
    try:
        codec(np.zeros((1, 1600), np.float32), SAMPLING_RATE)
    except Exception as error:  # libsndfile's, or its wrapper's about an unknown format
        raise UserError(
            f"Compress{name.title()} in data.augmentations: libsndfile {soundfile.__libsndfile_version__} of this"
            f" machine cannot write {name} ({in_one_line(error)}): pip install -U soundfile, or leave it out"
        ) from error
