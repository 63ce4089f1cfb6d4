"""Lhotse cuts of transcribed recordings that a model can be trained on; others are rejected with the reason."""

import json
import math
import os
from pathlib import Path
from urllib.parse import quote

import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from data_prep.audio.audio_files import Audio, Stretch, read_audio, read_end, resample, write_audio
from data_prep.audio.checks import Rejected, check_samples
from data_prep.corpora.entries import Utterance
from data_prep.machinery.command_line import is_utf_8
from speechllm_pl.core.audio.channels import channels_cancel
from speechllm_pl.core.audio.sampling_rates import HIGHEST_HZ, LOWEST_HZ
from speechllm_pl.core.audio.units import FRAME_SECONDS, SAMPLING_RATE


def check_transcript(text: str, seconds: float) -> None:
    """Reject a transcript that is empty, or that the encoder's frames cannot carry.

    CTC emits at most one piece a frame, and no tokenizer joins words: more words than frames is impossible
    whatever the tokenizer. Nothing stricter is known here, because pieces may be as long as a word.
    """
    words = len(text.split())
    if words == 0:
        raise Rejected("no transcript")
    frames = math.floor(seconds / FRAME_SECONDS)
    if words > frames:
        raise Rejected(f"transcript too long: {words} words in {frames} encoder frames ({seconds:.2f} s)")


def cut_from_utterance(
    utterance: Utterance,
    *,
    max_seconds: float,
    copies: Path | None = None,
    copy_all: bool = False,
    rates: tuple[int, int] | None = None,
) -> MonoCut:
    """Open and check one recording; return its cut, which loads as (1, T) at 16 kHz.

    Resampling is left to loading. A recording of several channels, or one that only ffmpeg decodes, cannot be
    loaded as mono by a Lhotse manifest: it is written as 16 kHz mono FLAC in the folder `copies` (with
    `copy_all` every recording is), and a copy already made from the same source is used again.

    Args:
        rates: the lowest and the highest sampling rate in Hz that the corpus has; default is any.

    Raises:
        Rejected: with the reason, for whatever cannot be used.
    """
    path = _existing_path(utterance)
    copy = None if copies is None else copies / f"{quote(utterance.id, safe=' ')}.flac"
    if copy is not None and len(copy.name) > 240:  # file systems stop at 255
        raise Rejected("id too long for the name of a copy")
    fingerprint = _fingerprint(utterance, path)
    reused = copy is not None and _is_copy_of(copy, fingerprint)
    # A copy holds the stretch alone, so it is read from end to end.
    source = (copy, 0.0, None) if reused and copy else (path, utterance.start, utterance.end)
    audio = read_audio(*source, max_seconds=max_seconds)
    _check_rate(audio.sampling_rate, rates)
    if channels_cancel(audio.samples):
        raise Rejected("channels cancel: their mean is nearly silent, though they are not; keep one of them")
    samples = audio.samples.mean(axis=0)  # (T,)
    check_samples(samples, audio.sampling_rate)
    check_transcript(utterance.text, samples.size / audio.sampling_rate)
    if not reused:
        if not copy_all and audio.lazy and len(audio.samples) == 1:
            return cut_of(utterance, path, audio.stretch(), utterance.start)
        if copy is None:
            raise Rejected(f"not mono: {len(audio.samples)} channels or a format that needs a mono copy")
        samples = resample(samples, audio.sampling_rate)
        write_audio(copy, samples, comment=fingerprint)
        audio = Audio(samples[None], SAMPLING_RATE, samples.size, lazy=True)
    assert copy is not None
    return cut_of(utterance, copy, audio.stretch(), start=0.0)


def cut_from_header(utterance: Utterance, *, max_seconds: float, rates: tuple[int, int] | None = None) -> MonoCut:
    """Do as `cut_from_utterance`, many times faster: the header is believed, and only the end is decoded.

    Finds what is missing, empty, cut short, too long or of a wrong rate, but neither silence nor damage within.

    Raises:
        Rejected: with the reason, for whatever cannot be used.
    """
    path = _existing_path(utterance)
    stretch = read_end(path, utterance.start, utterance.end, max_seconds=max_seconds)
    _check_rate(stretch.sampling_rate, rates)
    check_transcript(utterance.text, stretch.seconds)
    return cut_of(utterance, path, stretch, utterance.start)


def _existing_path(utterance: Utterance) -> Path:
    """Path of the recording, after all checks that need not open it."""
    end = math.inf if utterance.end is None else utterance.end
    if not 0 <= utterance.start < end:
        raise Rejected(f"end before start: from {utterance.start} s to {utterance.end} s")
    if not utterance.text.strip():
        raise Rejected("no transcript")
    if not os.path.isfile(utterance.path):  # unlike Path.is_file, says no to impossible names too
        raise Rejected("missing: no such audio file")
    if not is_utf_8(utterance.path):
        raise Rejected("path not UTF-8: rename the file or its folder, a manifest cannot name it")
    return Path(utterance.path)


def _check_rate(sampling_rate: int, rates: tuple[int, int] | None) -> None:
    if not LOWEST_HZ <= sampling_rate <= HIGHEST_HZ:
        raise Rejected(f"implausible sampling rate: {sampling_rate} Hz, recordings have {LOWEST_HZ} to {HIGHEST_HZ} Hz")
    if rates is not None and not rates[0] <= sampling_rate <= rates[1]:
        expected = " to ".join(f"{rate}" for rate in sorted(set(rates)))
        raise Rejected(f"wrong sampling rate: {sampling_rate} Hz, the corpus has {expected} Hz")


def cut_of(utterance: Utterance, path: Path, audio: Stretch, start: float) -> MonoCut:
    """Make the cut of `audio`, which begins `start` seconds into the file `path`."""
    recording = Recording(
        id=utterance.id,
        sources=[AudioSource(type="file", channels=[0], source=str(path))],
        sampling_rate=audio.sampling_rate,
        num_samples=audio.recording_samples,
        duration=audio.recording_samples / audio.sampling_rate,
    )
    if audio.sampling_rate != SAMPLING_RATE:
        recording = recording.resample(SAMPLING_RATE)
    whole = audio.samples == audio.recording_samples
    duration = recording.duration if whole else audio.seconds
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=duration,
        channel=0,
        text=utterance.text,
        language=utterance.language,
        speaker=utterance.speaker,
        gender=utterance.gender or None,
    )
    return MonoCut(
        id=utterance.id,
        start=start,
        duration=duration,
        channel=0,
        recording=recording,
        supervisions=[supervision],
    )


def _fingerprint(utterance: Utterance, path: Path) -> str:
    """Identify the stretch of audio that a copy is made from; kept as the copy's comment."""
    status = path.stat()
    source = [str(path), status.st_size, status.st_mtime_ns, utterance.start, utterance.end]
    return json.dumps(source, ensure_ascii=True)


def _is_copy_of(copy: Path, fingerprint: str) -> bool:
    try:
        with soundfile.SoundFile(copy) as file:
            return file.comment == fingerprint
    except (soundfile.LibsndfileError, OSError):
        return False
