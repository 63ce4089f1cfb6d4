"""Augmentation by noise and by reverberation in rooms, recorded or simulated."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from lhotse import Recording, RecordingSet, load_manifest
from lhotse.audio.mixer import AudioMixer
from lhotse.augmentation.rir import ReverbWithImpulseResponse
from lhotse.augmentation.utils import FastRandomRIRGenerator
from lhotse.cut import Cut
from tqdm import tqdm

from speechllm_pl.core.audio.sources import runs_in_shell, unsafe_source
from speechllm_pl.core.audio.units import SAMPLING_RATE, seconds_of
from speechllm_pl.core.errors import UserError, in_one_line, printable
from speechllm_pl.data.augmentation.perturbation import Perturbation
from speechllm_pl.data.notes import reading
from speechllm_pl.data.utterance import read
from speechllm_pl.storage.containers import broken_promise
from speechllm_pl.storage.folders import audio_files

TRIES = 10
"""Number of consecutive unreadable recordings that ends a run: the disk is gone."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AddNoise(Perturbation):
    """Adds a stretch of a recording, repeated if the utterance is longer.

    Args:
        folder: Folder of noise recordings, subfolders included.
        manifest: Lhotse recordings or cuts of noise, instead of a folder.
        snr_db: Range of the signal-to-noise ratio in dB, both taken over the whole utterance.
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
        """Recordings, opened once and sent to loader processes."""
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
    """Puts the speaker into a room. Timing of the direct sound and power are kept.

    Args:
        folder: Folder of room impulse responses, subfolders included; their first channels are used.
        manifest: Lhotse recordings or cuts of impulse responses, instead of a folder. With neither, rooms are simulated
            (FRA-RIR, arXiv 2208.04101).
        max_t60_seconds: Longest time in seconds in which simulated rooms go quiet by 60 dB.
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
        """Recordings, opened once and sent to loader processes; None if rooms are simulated."""
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


# recordings


@lru_cache
def recordings_of(folder: str | None, manifest: str | None, used_by: str) -> tuple[Recording, ...]:
    """Recordings of a folder or manifest that can be opened; others are named in a warning.

    Raises:
        UserError: there are none.
    """
    source = f"folder {folder}" if folder is not None else f"manifest {manifest}"
    for_whom = f"{used_by} in data.augmentations: "
    paths = _audio_files(Path(folder)) if folder is not None else []
    try:
        candidates = paths or ([] if manifest is None else _listed(manifest))
    except Exception as error:  # whatever Lhotse throws at a file that is no manifest
        raise UserError(f"{for_whom}{source} cannot be read ({error}): it must list Lhotse recordings") from error
    if not candidates:
        raise UserError(f"{for_whom}{source} has no recordings: put audio files there, or give another")
    found = [_opened(each) for each in tqdm(candidates, desc=f"recordings of {source}", delay=2.0, leave=False)]
    recordings = tuple(recording for recording in found if recording is not None)
    if not recordings:
        raise UserError(f"{for_whom}none of the {len(found)} recordings of {source} can be read")
    return recordings


def _audio_files(folder: Path) -> list[Path]:
    """Audio files of a folder in an order that does not depend on the disk; links are followed."""
    found = audio_files(folder)
    for skipped in found.skipped:
        log.warning("left out %s", printable(skipped))
    return found.files


def _listed(manifest: str) -> list[Recording]:
    items = load_manifest(manifest)
    return list(items) if isinstance(items, RecordingSet) else [_recording_of(cut) for cut in items]


def _recording_of(cut: Cut) -> Recording:
    """Recording of a cut.

    Raises:
        UserError: the cut is a part of a longer recording.
    """
    recording = getattr(cut, "recording", None)
    if recording is None or abs(cut.duration - recording.duration) > 0.01:
        raise UserError(f"{cut.id} is not the whole of one recording: save its audio to a file of its own")
    return recording


def _opened(candidate: Path | Recording) -> Recording | None:
    """Recording with its header read, or None with a warning."""
    try:
        if unsafe := _unsafe(candidate):
            raise UserError(f"{unsafe}: name a file")
        if isinstance(candidate, Recording):
            candidate.load_audio(duration=min(0.01, candidate.duration))
            return candidate
        if broken := broken_promise(candidate):
            raise UserError(f"it is truncated or damaged, {broken}")
        recording = Recording.from_file(candidate, recording_id=candidate.stem)
        if not recording.num_samples:
            raise UserError("it is empty")
        return recording
    except Exception as error:  # whatever a decoder throws
        log.warning("left out %s, which cannot be read: %s", getattr(candidate, "id", candidate), in_one_line(error))
        return None


def _unsafe(candidate: Path | Recording) -> str:
    """Describe a source that would be run instead of read; empty if there is none."""
    if isinstance(candidate, Recording):
        return unsafe_source(candidate.to_dict())
    return "a name that a shell would interpret" if runs_in_shell(str(candidate)) else ""


def draw(
    recordings: Sequence[Recording], generator: np.random.Generator, load: Callable[[Recording], np.ndarray]
) -> tuple[np.ndarray, str]:
    """Load a random recording that can be read, and return it with its name.

    Raises:
        UserError: ten in a row cannot be read.
    """
    for _ in range(TRIES):
        recording = recordings[int(generator.integers(len(recordings)))]
        reading(f"{recording.id} ({', '.join(str(source.source) for source in recording.sources)})")
        try:
            return load(recording), recording.id
        except Exception as error:  # whatever a decoder throws
            reason = f"{recording.id}, which cannot be read: {in_one_line(error)}"
            log.warning("passed over %s", reason)
    raise UserError(f"{TRIES} recordings of noise or rooms in a row cannot be read, at last {reason}")


def stretch(recording: Recording, length: int, generator: np.random.Generator) -> np.ndarray:
    """Samples of the recording from a random position, `(length,)`."""
    seconds = seconds_of(length) + 0.01  # for what resampling rounds
    spare = recording.duration - seconds
    cut = recording.to_cut()
    if spare > 0:
        cut = cut.truncate(offset=generator.uniform(0, spare), duration=seconds)
    return np.resize(read(cut), length)


def impulse_response(recording: Recording) -> np.ndarray:
    """Samples of the first channel, `(R,)`: the mean of several channels could cancel out.

    Raises:
        UserError: it is silent.
    """
    response = recording.resample(SAMPLING_RATE).load_audio()[0].astype(np.float32)
    if not response.any() or not np.isfinite(response).all():
        raise UserError(f"{recording.id}: an impulse response must be finite, and not silent")
    return response
