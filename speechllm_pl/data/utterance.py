"""Read the samples of a cut."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lhotse import Recording
from lhotse.augmentation import torchaudio as lhotse_transforms
from lhotse.cut import Cut, MixedCut
from torch import Tensor

from speechllm_pl.core.audio.channels import channels_cancel
from speechllm_pl.core.audio.resampling import steady
from speechllm_pl.core.audio.sampling_rates import implausible_rate, rate_of_files
from speechllm_pl.core.audio.units import SAMPLING_RATE, samples_in
from speechllm_pl.core.cut_fields import TEXT_ALONE
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import UNKNOWN_LANGUAGE
from speechllm_pl.data.recording import decoded
from speechllm_pl.storage.containers import broken_promise, false_rate
from speechllm_pl.storage.folders import no_file
from speechllm_pl.storage.frame_cache import FrameCache

# Lhotse fills up to 0.5 s that a file lacks with the mirror image of its end: speech that nobody said.
os.environ.setdefault("LHOTSE_AUDIO_DURATION_MISMATCH_TOLERANCE", "0.1")  # seconds, left open by MP3 headers

# Whatever of Lhotse's resamples asks this for the filter, which can take gigabytes.
lhotse_transforms.get_or_create_resampler = steady(lhotse_transforms.get_or_create_resampler)


NO_SAMPLES = np.empty(0, np.float32)


class Utterance(NamedTuple):
    """An utterance of N samples with its text."""

    id: str
    samples: np.ndarray  # (N,) float32, mono, 16 kHz
    text: str
    language: str  # ISO 639-1, or `und`
    copy: int = 0  # how often the epoch has had it before, where rare languages are heard more often
    drawn: tuple[str, ...] = ()  # what augmentation has done to it, in words
    without_audio: int = 0  # samples that its audio would have, of a text alone or where frames take its place
    frames: Tensor | None = None  # (T, dim) of a frozen encoder, in place of samples

    @property
    def is_text_alone(self) -> bool:
        return self.without_audio > 0 and self.frames is None


def read_utterance(
    cut: Cut, copy: int = 0, into: np.ndarray | None = None, frames: FrameCache | None = None
) -> Utterance:
    """Read an utterance.

    Args:
        into: memory that may be decoded into.
        frames: what has its frames, so that its audio is not read.

    Raises:
        UserError: see `read`, and `FrameCache.read`. Errors of decoders come through as they are.
    """
    supervision = cut.supervisions[0]
    text, language = supervision.text or "", supervision.language or UNKNOWN_LANGUAGE
    if is_text_alone(cut) or frames is not None:
        kept = None if frames is None else frames.read(audio_digest(cut))
        unheard = samples_in(cut.duration)
        return Utterance(cut.id, NO_SAMPLES, text, language, copy, without_audio=unheard, frames=kept)
    return Utterance(cut.id, read(cut, into), text, language, copy)


def is_text_alone(cut: Cut) -> bool:
    """Whether a cut is a text without audio, as `data_prep.text_alone` writes them; its duration is an estimate."""
    return bool((getattr(cut, "custom", None) or {}).get(TEXT_ALONE))


def audio_digest(cut: Cut) -> str:
    """Digest of what a cut says of its audio, and of audio in memory, or the size and time of change of its files."""
    described = {**cut.to_dict(), "supervisions": None}
    paths = (path for recording in _recordings(cut) for path in _paths(recording))
    archives = (path.partition(".tar/") for path in paths)
    files = [os.stat(head + (".tar" if inside else "")) for head, inside, _ in archives]
    content = json.dumps([described, [(each.st_size, each.st_mtime_ns) for each in files]], default=_short)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _short(value: object) -> str:
    return hashlib.blake2b(value).hexdigest() if isinstance(value, bytes) else repr(value)


def read(cut: Cut, into: np.ndarray | None = None) -> np.ndarray:
    """Read the samples of a cut: `(N,)` float32, mono, 16 kHz.

    Args:
        into: memory that may be decoded into.

    Raises:
        UserError: there are none, some are not finite, the file cannot be read or was cut off, or its sampling rate is
            implausible or not what the manifest says.
    """
    _refuse_files(cut)
    samples, finite = decoded(cut, into) or (None, False)
    if samples is None:
        _refuse_rates(cut)
        if cut.sampling_rate != SAMPLING_RATE:
            cut = cut.resample(SAMPLING_RATE)
        channels = np.atleast_2d(cut.load_audio())
        if channels_cancel(channels):
            raise UserError(f"{cut.id}: the channels cancel each other: keep one of them")
        samples = channels.mean(axis=0).astype(np.float32)
    if samples.size == 0:
        raise UserError(f"{cut.id}: the recording is empty")
    if not finite and not np.isfinite(samples).all():
        raise UserError(f"{cut.id}: the recording has samples that are not finite")
    return samples


def _refuse_files(cut: Cut) -> None:
    """Refuse what is not a file, on which a reader might wait forever, and files without their end.

    FLAC is not opened for this, since it does not decode without its end.
    """
    for path in files_of(cut):
        if why := no_file(path):
            raise UserError(f"{cut.id}: audio file {path} cannot be read: {why}")
        if not path.lower().endswith(".flac") and (broken := broken_promise(Path(path))):
            raise UserError(f"{cut.id}: {path} is truncated or damaged, {broken}")


def _refuse_rates(cut: Cut) -> None:
    """Refuse implausible sampling rates and rates that the files do not have."""
    for recording in _recordings(cut):
        said = rate_of_files(recording)
        if wrong := implausible_rate(said):
            raise UserError(f"{cut.id}: {wrong}")
        for path in _files(recording):
            if wrong := false_rate(path, said):
                raise UserError(f"{cut.id}: {wrong}")


def files_of(cut: Cut) -> list[str]:
    """Audio files of a cut, without members of archives (Lhotse's `a.tar/b.wav`)."""
    return [path for recording in _recordings(cut) for path in _files(recording)]


def _files(recording: Recording) -> list[str]:
    return [path for path in _paths(recording) if ".tar/" not in path]


def _paths(recording: Recording) -> list[str]:
    return [str(source.source) for source in recording.sources if source.type == "file"]


def _recordings(cut: Cut) -> list[Recording]:
    """Recordings of a cut; a mixed cut has several."""
    if isinstance(cut, MixedCut):
        return [recording for track in cut.tracks for recording in _recordings(track.cut)]
    recording = getattr(cut, "recording", None)
    return [] if recording is None else [recording]
