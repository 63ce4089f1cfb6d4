"""`speechllm transcribe --stream`: the real command hears a pipe, and what it prints is final."""

import fcntl
import json
import os
import re
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile
import soxr
from command import COMMAND, environment
from conftest import RATE, speak
from tone_words import ToneRecognizer, sentences, with_pauses

from speechllm_pl.apps.transcribe_stream import _LiveClock

HEARD = re.compile(
    r"(?P<seconds>[\d.]+) s heard; latency of (?P<words>\d+) words: .*; latency of (?P<pieces>\d+) pieces"
)


def pcm(samples: np.ndarray, rate: int = RATE) -> bytes:
    if rate != RATE:
        samples = soxr.resample(samples, RATE, rate)
    return (samples * 2**15).astype("<i2").tobytes()


@pytest.fixture
def streamed(speechllm, monkeypatch: pytest.MonkeyPatch):
    """Run the command in this process with bytes on standard input."""

    def run(content: bytes, *more: object, before_end=lambda *_: None):
        recognizer, ended = ToneRecognizer(), threading.Event()
        monkeypatch.setattr("speechllm_pl.apps.transcribe.Recognizer.load", lambda *_, **__: recognizer)
        reader, writer = os.pipe()

        def write() -> None:
            with open(writer, "wb") as file:
                file.write(content)
                file.flush()
                before_end(file, ended)

        thread = threading.Thread(target=write)
        with open(reader) as stdin, monkeypatch.context() as patch:
            patch.setattr("sys.stdin", stdin)
            thread.start()
            options = ("--checkpoint", "x", "--max_seconds", 6, "--guard", "false")
            done = speechllm("transcribe", "--stream", "-", *options, *more)
        ended.set()
        thread.join()
        return done

    return run


def lines_of(out: str) -> tuple[list[str], list[str]]:
    """Texts of the lines of heard words, and of those of pieces."""
    lines = out.splitlines()
    words = [line.removeprefix("… ") for line in lines if line.startswith("… ")]
    pieces = [line.partition(" s: ")[2] for line in lines if not line.startswith("… ")]
    return words, pieces


@pytest.mark.parametrize("rate", [16_000, 12_000, 44_100])
def test_words_and_pieces_of_standard_input(streamed, rate: int) -> None:
    texts = sentences(6, 0)
    done = streamed(pcm(with_pauses(texts, 0, least=0.6), rate), "--sample_rate", rate)
    assert done.status == 0, done.err
    words, pieces = lines_of(done.out)
    assert words == pieces == texts
    told = HEARD.search(done.err)
    assert told
    assert int(told["words"]) == len(" ".join(texts).split())
    assert int(told["pieces"]) == len(texts)


def test_a_file_has_the_output_of_standard_input(streamed, speechllm, tmp_path: Path) -> None:
    samples = with_pauses(sentences(5, 1), 1)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="PCM_16")
    piped = streamed(pcm(samples))
    options = ("--checkpoint", "x", "--max_seconds", 6, "--guard", "false")
    done = speechllm("transcribe", "--stream", tmp_path / "a.wav", *options)
    assert done.status == 0, done.err
    assert done.out == piped.out != ""


def test_json_has_an_object_a_line(streamed) -> None:
    done = streamed(pcm(with_pauses(["one two", "three"], 0, least=0.6)), "--format", "json")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [[*row] for row in rows] == [["word"], ["word"], ["piece"], ["word"], ["piece"]]
    assert [row["piece"]["text"] for row in rows if "piece" in row] == ["one two", "three"]
    assert rows[1]["word"]["start_seconds"] == pytest.approx(0.4, abs=0.081)


def test_an_interruption_ends_the_piece_and_prints_it(streamed) -> None:
    ends: list[bool] = []

    def interrupt(pipe: BinaryIO, ended: threading.Event) -> None:
        while int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little"):
            time.sleep(0.01)  # until all is read
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        ends.append(ended.wait(60))  # the pipe stays open

    before = signal.getsignal(signal.SIGINT)
    done = streamed(pcm(speak("one two three")), before_end=interrupt)
    assert ends == [True]
    assert done.status == 0, done.err
    assert lines_of(done.out) == (["one two three"], ["one two three"])
    assert signal.getsignal(signal.SIGINT) == before


def test_a_folder_of_several_recordings_is_no_input(streamed, speechllm, tmp_path: Path) -> None:
    streamed(b"")  # puts a recogniser in the model's place
    given = ("transcribe", "--stream", tmp_path, "--checkpoint", "x", "--max_seconds", 6)
    assert f"folder {tmp_path} holds no audio files" in speechllm(*given).error()
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", speak("one"), RATE)
    told = speechllm(*given).error()
    assert f"{tmp_path} holds 2 recordings, and --stream takes one: give one of them" in told


@pytest.mark.parametrize("content", [b"", b"\1"])
def test_next_to_nothing_ends_well(streamed, content: bytes) -> None:
    done = streamed(content)
    assert (done.status, done.out) == (0, "")
    assert "0.0 s heard; no words; no pieces" in done.err


def test_a_terminal_and_files_with_headers_are_no_input(streamed, speechllm, monkeypatch) -> None:
    assert "not raw PCM" in streamed(b"RIFF" + bytes(100)).error()
    monkeypatch.setattr("sys.stdin", None)
    assert "pipe raw PCM to it" in speechllm("transcribe", "--stream", "-", "--checkpoint", "x").error()


def test_the_clock_is_that_of_a_live_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = _LiveClock()

    def steps() -> Iterator[np.ndarray]:
        for waiting in (5.0, 0.0, 0.0):
            now[0] += waiting  # does not count
            yield np.zeros(RATE)

    at = []
    for work in zip(clock.through(steps()), (0.5, 1.2, 0.1), strict=False):
        now[0] += work[1]
        at.append(clock.now())
    assert at == pytest.approx([1.5, 3.2, 3.3])  # the third step is there at 3.0, but the second has taken until 3.2
    assert clock.heard_seconds == 3.0


@pytest.mark.parametrize("checkpoint", ["untrained_ctc", "untrained_llm"])
def test_the_installed_command_hears_a_pipe(checkpoint: str, request: pytest.FixtureRequest) -> None:
    """Random weights hear anything or nothing; an odd byte ends the stream."""
    path = request.getfixturevalue(checkpoint)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 2 * RATE) * (np.arange(2 * RATE) % 4000 < 2000)
    options = ("--checkpoint", path, "--max_seconds", 4, "--sample_rate", 16000)
    process = subprocess.run(
        [COMMAND, "transcribe", "--stream", "-", *map(str, options)],
        input=pcm(noise) + b"\0",
        capture_output=True,
        env=environment(),
        check=False,
    )
    told = process.stderr.decode()
    assert process.returncode == 0, told
    assert "listening" in told
    assert "2.0 s heard" in told
    assert "ends inside a sample" in told
