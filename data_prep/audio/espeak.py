"""espeak-ng as a pure function from text to samples.

The library keeps state from one utterance to the next (the phase of its flutter, the tails of echoes, its
random numbers), and setting the voice again does not clear it. So each utterance is spoken by a fork of a
process in which the library is initialized and has said nothing. That process is a small one of its own, this
module run as a program: forking one that holds PyTorch costs ten times more than the speech.
"""

import ctypes
import itertools
import json
import os
import struct
import subprocess
import sys
from typing import NamedTuple

import espeakng_loader

from speechllm_pl.core.errors import UserError

SAMPLING_RATE = 22_050
"""Hz, of all that espeak-ng says with its own voices."""

# From espeak-ng's speak_lib.h
_RETRIEVE_SYNCHRONOUSLY, _RETURN_ERRORS, _POSITION_IS_CHARACTER, _UTF8 = 2, 0x8000, 1, 1
_RATE, _VOLUME, _PITCH = 1, 2, 3
_LIST_ENDS, _WORD_BEGINS = 0, 1

_LENGTH = struct.Struct("<II")  # before each answer: bytes of samples, bytes of word events
_WORD = struct.Struct("<iii")


class Word(NamedTuple):
    """Beginning of a word in speech."""

    position: int  # of its first character in the text
    length: int  # characters
    sample: int


class Speech(NamedTuple):
    """What was said, and when."""

    samples: bytes  # 16 bits each, at SAMPLING_RATE
    words: list[Word]  # as espeak-ng divides the text


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


class Espeak:
    """Process that speaks. It ends with the object or with the program."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "data_prep.audio.espeak"]
        # A session of its own: Ctrl-C is the caller's business; the process ends when its input does.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def __call__(self, text: str, voice: str, *, words_per_minute: int, pitch: int) -> Speech:
        """Speak a text; there are no samples where espeak-ng fails, as for an unknown voice.

        Args:
            voice: a voice and perhaps a variant, as `de+f2`.
            pitch: 0 to 100, 50 is the voice's own.

        Raises:
            UserError: espeak-ng did not start.
        """
        parameters = {_RATE: words_per_minute, _PITCH: pitch, _VOLUME: 60}  # louder ones clip
        try:
            self._requests.write(json.dumps([text, voice, list(parameters.items())]).encode() + b"\n")
            self._requests.flush()
            samples, words = _LENGTH.unpack(self._answers.read(_LENGTH.size))
        except (BrokenPipeError, struct.error) as error:
            raise UserError(
                f"espeak-ng does not start with its voices in {espeakng_loader.get_data_path()}: reinstall "
                "espeakng-loader; if that path is very long (150 characters), move the virtual environment"
            ) from error
        return Speech(
            self._answers.read(samples), [Word(*word) for word in _WORD.iter_unpack(self._answers.read(words))]
        )


def _initialize() -> ctypes.CDLL:
    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    data = str(espeakng_loader.get_data_path()).encode()
    if library.espeak_Initialize(_RETRIEVE_SYNCHRONOUSLY, 0, data, _RETURN_ERRORS) != SAMPLING_RATE:
        raise SystemExit(1)
    return library


def _speak(library: ctypes.CDLL, text: str, voice: str, parameters: list[tuple[int, int]]) -> tuple[bytes, bytes]:
    """Speak a text and return samples and word events.

    Call it once a process, since it spoils the state of the library.
    """
    chunks: list[bytes] = []
    words: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))
    def keep(samples, count, events):
        if samples and count:
            chunks.append(ctypes.string_at(samples, 2 * count))
        for event in itertools.takewhile(lambda event: event.type != _LIST_ENDS, events):
            if event.type == _WORD_BEGINS:
                words.append(_WORD.pack(event.text_position - 1, event.length, event.sample))
        return 0  # go on

    library.espeak_SetSynthCallback(keep)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # otherwise seeded with the time of day
    failed = library.espeak_SetVoiceByName(voice.encode())
    for parameter, value in parameters:
        failed |= library.espeak_SetParameter(parameter, value, 0)
    size = ctypes.c_size_t(len(text.encode()) + 1)
    failed |= library.espeak_Synth(text.encode(), size, 0, _POSITION_IS_CHARACTER, 0, _UTF8, None, None)
    return (b"", b"") if failed else (b"".join(chunks), b"".join(words))


def _serve() -> None:
    """Answer requests, one a line, until there are no more."""
    library = _initialize()
    for request in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            samples, words = _speak(library, *json.loads(request))
            sys.stdout.buffer.write(_LENGTH.pack(len(samples), len(words)) + samples + words)
            sys.stdout.buffer.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:  # died before it answered
            sys.stdout.buffer.write(_LENGTH.pack(0, 0))
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
