"""A trained recogniser for scripts: `speechllm_pl.load`."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
import soxr
from torch import Tensor

from speechllm_pl.apps.devices import device_of
from speechllm_pl.apps.effects import language_without_effect, llm_without_effect
from speechllm_pl.apps.given_audio import samples_of
from speechllm_pl.core.audio.sampling_rates import implausible_rate
from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import UNKNOWN_LANGUAGE
from speechllm_pl.recognition.decoding_options import DecodingOptions, PausesBy, Precision, check_lengths
from speechllm_pl.recognition.guard import GuardLimits
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.recognition.transcriber import Source, Transcriber
from speechllm_pl.recognition.transcript import Transcript

Audio = str | Path | np.ndarray | Tensor
"""An audio file, or samples: `(N,)`, or `(channel, N)`, of floats in -1 … 1."""

Errors = Literal["raise", "return"]
"""What becomes of the error of a recording that cannot be transcribed."""

MOST_CHANNELS = 32
"""Largest number of channels of an array; more rows than that are samples."""


class Asr:
    """Transcribes audio of any length.

    Args:
        transcriber: model and options.
        path: run folder or checkpoint of the model.
        precision: precision of the computation; None is that of training.
    """

    def __init__(self, transcriber: Transcriber, path: str | Path, precision: Precision | None = None):
        self.transcriber, self.path = transcriber, path
        self.precision: Precision | None = precision

    @overload
    def transcribe(
        self,
        audio: Audio,
        *,
        language: str | None = None,
        sampling_rate: int = SAMPLING_RATE,
        errors: Literal["raise"] = "raise",
    ) -> Transcript: ...

    @overload
    def transcribe(
        self,
        audio: Audio,
        *,
        language: str | None = None,
        sampling_rate: int = SAMPLING_RATE,
        errors: Literal["return"],
    ) -> Transcript | UserError: ...

    @overload
    def transcribe(
        self,
        audio: Sequence[Audio],
        *,
        language: str | None = None,
        sampling_rate: int = SAMPLING_RATE,
        errors: Literal["raise"] = "raise",
    ) -> list[Transcript]: ...

    @overload
    def transcribe(
        self,
        audio: Sequence[Audio],
        *,
        language: str | None = None,
        sampling_rate: int = SAMPLING_RATE,
        errors: Literal["return"],
    ) -> list[Transcript | UserError]: ...

    def transcribe(
        self,
        audio: Audio | Sequence[Audio],
        *,
        language: str | None = None,
        sampling_rate: int = SAMPLING_RATE,
        errors: Errors = "raise",
    ) -> Transcript | UserError | list[Transcript] | list[Transcript | UserError]:
        """Transcribe a recording, or a list of them in batches of like length.

        Args:
            audio: a file's path, `(N,)` or `(channel, N)` samples of floats in -1 … 1, or a list of such.
            language: ISO 639-1 code, for a model whose instruction names the language.
            sampling_rate: of samples, in Hz; files have their own.
            errors: whether the error of a recording that cannot be transcribed is raised, so that the others'
                transcripts are lost, or returned in the place of its transcript.

        Returns:
            A transcript of one recording, or a list of them in the order of `audio`. Times are in seconds.

        Raises:
            UserError: a recording cannot be transcribed, unless such errors are returned; it is of a type that no
                audio has; or the model was not trained on the language.
        """
        if errors not in get_args(Errors):
            raise UserError(f"errors {errors!r} is unknown: give raise or return")
        _warn(language_without_effect(self.path, language or UNKNOWN_LANGUAGE))
        if isinstance(audio, Audio):
            (transcript,) = self._transcripts([audio], language, sampling_rate, errors)
            return transcript
        if not isinstance(audio, Iterable):
            raise _of_no_use("audio", audio)
        return list(self._transcripts(audio, language, sampling_rate, errors))

    def _transcripts(
        self, audio: Iterable[Audio], language: str | None, hz: int, errors: Errors
    ) -> Iterator[Transcript | UserError]:
        sources = (_source(each, f"recording {number}", hz) for number, each in enumerate(audio))
        if isinstance(audio, Sequence):
            sources = [*sources]  # so that what is no audio is told before any is decoded
        with self.transcriber.recognizer.decoding(self.precision):
            for found in self.transcriber.transcripts(sources, language or UNKNOWN_LANGUAGE):
                if isinstance(found, UserError) and errors == "raise":
                    raise found
                yield found


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: Precision | None = None,
    llm: str | None = None,
    encoder: str | None = None,
    max_seconds: float | None = None,
    batch_seconds: float = 60.0,
    guard: bool = True,
    pauses: PausesBy = "ctc",
    **decoding: Any,
) -> Asr:
    """Load a trained recogniser.

    Args:
        path: run folder, whose best checkpoint is taken, or a checkpoint.
        device: `cpu`, `cuda`, `cuda:1`; `auto` is a GPU if there is one.
        precision: precision of the computation; default is that of training.
        llm: folder or name of the LLM, if it has moved since training.
        encoder: folder or name of a pretrained encoder, if it has moved since training.
        max_seconds: longest stretch that is decoded at once; default is the longest utterance of the training.
        batch_seconds: audio in a batch.
        guard: doubt texts of the LLM that loop, are too short or too long, or differ from what the CTC head heard,
            and take sounds that cannot be speech, or of which that is unsure, for silence.
        pauses: what finds the pauses at which long recordings are divided; `silero` needs the extra `vad`.
        decoding: fields of `DecodingOptions`, such as `decoder="beam"`.

    Raises:
        UserError: there is no checkpoint, or it cannot be used, an option is unknown or has a value that cannot be, or
            silero-vad is not installed.
    """
    known = [field.name for field in fields(DecodingOptions)]
    if unknown := sorted({*decoding} - {*known}):
        raise UserError(f"load has no option {unknown[0]!r}: those of decoding are {', '.join(known)}")
    options = DecodingOptions(**decoding)
    check_lengths(max_seconds, batch_seconds)
    recognizer = Recognizer.load(path, llm, device_of(device), encoder)
    _warn(llm_without_effect(recognizer, options, llm))
    transcriber = Transcriber(
        recognizer,
        options,
        longest_seconds=max_seconds,
        batch_seconds=batch_seconds,
        limits=GuardLimits() if guard else None,
        pauses_by=pauses,
    )
    return Asr(transcriber, path, precision)


def _warn(no_effect: str) -> None:
    if no_effect:
        warnings.warn(no_effect.replace("--", ""), stacklevel=3)


def _source(audio: Audio, name: str, hz: int) -> Source:
    if isinstance(audio, str | Path):
        return Source(str(audio), samples_of(Path(audio)))
    if not isinstance(audio, np.ndarray | Tensor):
        raise _of_no_use(name, audio)
    return Source(name, _mono(audio, name, hz))


def _of_no_use(name: str, audio: object) -> UserError:
    return UserError(
        f"{name} is of type {type(audio).__name__}: give a path or an array of floats in -1 … 1, or a list of such,"
        " with sampling_rate=… for the rate of arrays"
    )


def _mono(audio: np.ndarray | Tensor, name: str, hz: int) -> Iterator[np.ndarray]:
    """Samples as one float32 channel at 16 kHz."""
    samples = audio.detach().cpu().numpy() if isinstance(audio, Tensor) else audio
    if samples.dtype.kind != "f" or samples.ndim not in (1, 2) or (samples.ndim == 2 and len(samples) > MOST_CHANNELS):
        given = f"{samples.dtype} of shape {samples.shape}"
        shape = f"(N,) or (channel, N) with at most {MOST_CHANNELS} channels, which for soundfile's (N, channel) is .T"
        raise UserError(f"{name} is {given}: give floats in -1 … 1, of shape {shape}")
    if wrong := implausible_rate(hz):
        raise UserError(f"{name}: {wrong}")
    if not np.isfinite(samples).all():
        raise UserError(f"{name} has samples that are not finite: replace NaN and infinity, or leave it out")
    mono = (samples.mean(0) if samples.ndim == 2 else samples).astype(np.float32)
    yield mono if hz == SAMPLING_RATE else soxr.resample(mono, hz, SAMPLING_RATE).astype(np.float32)
