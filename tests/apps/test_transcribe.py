"""`speechllm transcribe`: each text is printed when it is there, whatever becomes of the others."""

import itertools
import os
import sys
from pathlib import Path

import pytest
from conftest import SPLITS
from listener import Listener


@pytest.fixture
def transcribe(speechllm, corpus: Path, monkeypatch: pytest.MonkeyPatch):
    """The eight training utterances, of 1 to 5 words of 0.35 s, in batches of at most 2.5 s."""
    files = [corpus / f"train-{number}.wav" for number in range(len(SPLITS["train"]))]

    def run(recognizer: Listener, *more: object):
        monkeypatch.setattr("speechllm_pl.apps.transcribe.Recognizer.load", lambda *_, **__: recognizer)
        return speechllm("transcribe", *files, *more, "--checkpoint", "x", "--max_duration", 2.5), files

    return run


def lines(files: list[Path], count: int) -> list[str]:
    samples = [800 + len(text.split()) * 5600 for text in SPLITS["train"]]
    return [f"{file}: {length} samples" for file, length in zip(files[:count], samples[:count], strict=True)]


def test_texts_are_printed_batch_by_batch_in_the_order_of_the_files(transcribe, monkeypatch, tmp_path: Path) -> None:
    """Before a batch is recognised, whoever reads the output has the texts of all before it."""
    arrived: list[list[str]] = []
    recognizer = Listener(lambda _: arrived.append((tmp_path / "out").read_text().splitlines()))
    with (tmp_path / "out").open("w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        done, files = transcribe(recognizer)
    assert done.status == 0, done.err
    given = [0]
    for batch in recognizer.batches:
        given.append(given[-1] + len(batch))
    assert len(recognizer.batches) >= 4
    assert arrived == [lines(files, count) for count in given[:-1]]
    assert (tmp_path / "out").read_text().splitlines() == lines(files, 8)


def test_batches_are_as_long_as_was_said_with_padding(transcribe) -> None:
    recognizer = Listener(lambda _: None)
    transcribe(recognizer)
    long = [[samples / 16_000 for samples in batch] for batch in recognizer.batches]
    assert all(max(batch) * len(batch) <= 2.5 for batch in long)
    for batch, following in itertools.pairwise(long):
        assert max(*batch, following[0]) * (len(batch) + 1) > 2.5


def test_an_interruption_leaves_what_is_printed_and_ends_with_one_line(transcribe, corpus: Path) -> None:
    def interrupt(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    recognizer = Listener(interrupt)
    done, files = transcribe(recognizer, corpus / "missing.wav")
    count = sum(map(len, recognizer.batches))
    assert done.status == 130
    assert done.out.splitlines() == lines(files, count)
    assert done.err.splitlines()[-1] == (f"interrupted: {count} of 9 files are transcribed: give the other files again")
    assert f"left out audio file {corpus / 'missing.wav'} does not exist" in done.err
    assert "Traceback" not in done.err


def test_whoever_has_read_enough_ends_it_without_a_word(transcribe, monkeypatch) -> None:
    reader, writer = os.pipe()
    recognizer = Listener(lambda batch: os.close(reader) if batch == 1 else None)
    with open(writer, "w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        done, _ = transcribe(recognizer)
    assert done.status == 128 + 13
    assert len(recognizer.batches) == 2
    assert "Error" not in done.err


def test_a_refused_file_is_told_when_it_is_met(transcribe, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    told: list[str] = []
    done, _ = transcribe(Listener(lambda _: told.append(capsys.readouterr().err)), tmp_path / "bad.wav")
    assert f"left out {tmp_path / 'bad.wav'}: not audio" in told[-1]
    assert f"1 of 9 files refused: {tmp_path / 'bad.wav'}: not audio" in done.error()


def test_progress_counts_files_to_the_last(transcribe, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    done, _ = transcribe(Listener(lambda _: None), tmp_path / "bad.wav")
    bars = [line for line in done.err.replace("\r", "\n").splitlines() if line.startswith("transcribing: ")]
    assert "| 9/9 [" in bars[-1]
    assert bars[-1].startswith("transcribing: 100%")
