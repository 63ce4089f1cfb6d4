"""Plain recordings straight from libsndfile: Lhotse would copy their samples five times."""

from io import BytesIO
from typing import NamedTuple, cast

import numpy as np
import soundfile
from lhotse.cut import Cut, MonoCut
from lhotse.utils import compute_num_samples

from speechllm_pl.data.handover import row
from speechllm_pl.models.features import SAMPLING_RATE


class Decoded(NamedTuple):
    """A cut's samples."""

    samples: np.ndarray  # (N,) float32, mono, 16 kHz
    finite: bool  # for certain: they were integers


def decoded(cut: Cut) -> Decoded | None:
    """The samples of a cut of a mono recording at 16 kHz: the very ones that Lhotse would give.

    None if the cut is of another kind, or its file not what the manifest says: Lhotse knows what to do then.
    """
    if not isinstance(cut, MonoCut) or cut.recording is None or cut.recording.transforms:
        return None
    (source, *others) = cut.recording.sources
    if others or source.type not in ("file", "memory"):
        return None
    file = BytesIO(cast(bytes, source.source)) if source.type == "memory" else str(source.source)
    try:
        with soundfile.SoundFile(file) as audio:
            if (audio.channels, audio.samplerate, audio.frames) != (1, SAMPLING_RATE, cut.recording.num_samples):
                return None
            if cut.start == 0 and cut.duration == cut.recording.duration:
                return _samples(audio, audio.frames)  # FLAC's decoder takes its time for any seeking, even to here
            audio.seek(compute_num_samples(cut.start, SAMPLING_RATE))
            return _samples(audio, compute_num_samples(cut.duration, SAMPLING_RATE))
    except soundfile.LibsndfileError:
        return None


def _samples(audio: soundfile.SoundFile, count: int) -> Decoded | None:
    """The next ones, if there are so many."""
    subtype = audio.subtype
    if subtype == "PCM_16" and audio.format == "WAV":  # libsndfile makes floats of these one by one
        whole = audio.read(count, dtype="int16")
        return Decoded(np.multiply(whole, np.float32(2**-15), out=row(count)), True) if len(whole) == count else None
    samples = audio.read(out=row(count))
    return Decoded(samples, subtype.startswith("PCM_")) if len(samples) == count else None
