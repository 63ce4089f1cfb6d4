"""Measure the faults that a recording can have for the model, and encode it for a player on a page."""

import base64
import io
import math
from typing import NamedTuple

import numpy as np
import soundfile

from speechllm_pl.core.audio.units import SAMPLING_RATE, samples_in

SILENT_DBFS = -75.0
"""Level below which a recording is silent: a few steps of 16 bits."""

QUIET_DBFS = -60.0
"""Level below which speech is audible only when amplified."""

DEAD_SHARE = 0.5
"""Share of a recording, in stretches of `DEAD_SECONDS` or more without any change, above which it is faulty."""

DEAD_SECONDS = 0.1

CLIPPED_SHARE = 1e-3
"""Share of samples at full scale or on flat tops above which a recording is clipped: 16 ms in 16 s."""

FULL_SCALE = 0.99

FLAT_TOP = 3
"""Consecutive samples at the peak of a recording that make a flat top: a clipped wave, perhaps attenuated later."""

OFFSET = 0.01
"""Mean of the samples, where full scale is 1, from which a recording has a DC offset."""

NOISY_DB = 10.0
"""Level difference of loud and quiet frames below which a recording is noisy.

Read sentences have 24 to 68 dB; mixed with steady noise of their own level, 9 dB.
"""

FEWEST_FRAMES = 50
"""Frames of 20 ms that the noise measure needs: a shorter recording may hold speech alone and no background."""

FLOOR_DB = -120.0

LIMITS = {
    "silent": f"below −{-SILENT_DBFS:g} dBFS",
    "quiet": f"below −{-QUIET_DBFS:g} dBFS",
    "constant": f"{100 * DEAD_SHARE:g} % in stretches of {DEAD_SECONDS:g} s without any change",
    "clipped": f"{100 * CLIPPED_SHARE:g} % of the samples at full scale or on flat tops of the peak",
    "DC offset": f"a mean of {OFFSET:g} of full scale",
    "noisy": f"loud frames less than {NOISY_DB:g} dB above quiet ones",
}
"""The limits above in words, by fault."""

PLAYER_QUALITY = 0.8
"""MP3 compression level of players, from 0 (large) to 1 (small): about 2.7 kB a second."""


class Measures(NamedTuple):
    """Measures of one mono recording at 16 kHz."""

    level: float  # dB of full scale, the mean over the recording taken out
    peak: float  # 1 is full scale
    offset: float  # mean of the samples
    clipped: float  # share of the samples
    dead: float  # share of the samples
    range: float  # dB between the 95th and the 5th percentile of the frames' levels; NaN: too short to say


def measure(samples: np.ndarray) -> Measures:
    """Measure `(N,)` samples, at least one."""
    offset = float(samples.mean(dtype=np.float64))
    return Measures(
        level=_decibels(float(np.std(samples, dtype=np.float64))),
        peak=float(np.abs(samples).max()),
        offset=offset,
        clipped=_clipped_share(samples),
        dead=_dead_share(samples),
        range=_range_of_levels(samples - offset),
    )


def faults(measures: Measures) -> dict[str, tuple[float, str]]:
    """Badness and description of each fault, by kind. A recording without sound is not judged further."""
    if measures.level < SILENT_DBFS:
        still = abs(measures.offset) >= OFFSET
        where = f" around {measures.offset:+.3f} of full scale" if still else ""
        return {"constant" if still else "silent": (-measures.level, f"level {measures.level:.0f} dBFS{where}")}
    if measures.dead >= DEAD_SHARE:
        return {"constant": (measures.dead, f"{100 * measures.dead:.0f} % of it does not move")}
    found = {}
    if measures.level < QUIET_DBFS:
        found["quiet"] = (-measures.level, f"level {measures.level:.0f} dBFS")
    if measures.clipped >= CLIPPED_SHARE:
        found["clipped"] = (measures.clipped, f"{100 * measures.clipped:.2f} % of the samples are cut off")
    if abs(measures.offset) >= OFFSET:
        found["offset"] = (abs(measures.offset), f"DC offset {measures.offset:+.3f} of full scale")
    if measures.range < NOISY_DB:
        found["noisy"] = (-measures.range, f"loud frames are only {measures.range:.1f} dB above quiet ones")
    return found


def player_source(samples: np.ndarray, seconds: float) -> str:
    """Encode the first `seconds` as a `data:` URI of MP3, which every browser plays."""
    encoded = io.BytesIO()
    soundfile.write(
        encoded,
        samples[: samples_in(seconds)],
        SAMPLING_RATE,
        format="MP3",
        subtype="MPEG_LAYER_III",
        compression_level=PLAYER_QUALITY,
    )
    return "data:audio/mpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _decibels(amplitude: float) -> float:
    return max(FLOOR_DB, 20 * math.log10(amplitude)) if amplitude > 0 else FLOOR_DB


def _clipped_share(samples: np.ndarray) -> float:
    size = np.abs(samples)
    at_peak = size >= 0.9999 * size.max()  # a step of 16 bits, for all that is louder than a third of full scale
    flat = np.repeat(*_runs(at_peak)) >= FLAT_TOP
    return float(((size >= FULL_SCALE) | (flat & at_peak)).mean())


def _dead_share(samples: np.ndarray) -> float:
    starts = np.flatnonzero(np.r_[True, samples[1:] != samples[:-1]])
    lengths = np.diff(np.r_[starts, len(samples)])
    return float(lengths[lengths >= DEAD_SECONDS * SAMPLING_RATE].sum() / len(samples))


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the runs of equal values, twice: `np.repeat` makes of them the length of each value's run."""
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    lengths = np.diff(np.r_[starts, len(values)])
    return lengths, lengths


def _range_of_levels(samples: np.ndarray) -> float:
    frame = SAMPLING_RATE // 50
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    if len(frames) < FEWEST_FRAMES:
        return math.nan
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    quiet, loud = np.percentile(10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10))), (5, 95))
    return float(loud - quiet)
