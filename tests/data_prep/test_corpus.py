"""Checks, manifests and quarantine, on recordings made here with numpy and soundfile."""

import contextlib
import dataclasses
import functools
import gzip
import struct
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut

from data_prep.audio.audio_files import write_audio
from data_prep.audio.checks import Rejected, check_samples
from data_prep.corpora.checked_cuts import check_transcript, cut_from_header, cut_from_utterance
from data_prep.corpora.entries import Rejection, Utterance
from data_prep.corpora.preparation import prepare
from data_prep.machinery.command_line import Refused, run
from speechllm_pl.core.errors import UserError

FORMATS = {  # suffix: format and subtype of libsndfile
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "aiff": ("AIFF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis.ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def tone(rate: int, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def dominant_frequency(samples: np.ndarray, rate: int) -> float:
    return float(np.fft.rfftfreq(samples.size, 1 / rate)[np.abs(np.fft.rfft(samples)).argmax()])


def utterance(path: Path, text: str = "two words", **changes) -> Utterance:
    fields = {"id": path.stem, "path": path, "language": "en", "speaker": "ann", "split": "train"}
    return Utterance(**(fields | {"text": text} | changes))


def reason(utt: Utterance, *, max_seconds: float = 30.0, copies: Path | None = None) -> str:
    with pytest.raises(Rejected) as error:
        cut_from_utterance(utt, max_seconds=max_seconds, copies=copies)
    return str(error.value)


# ---------------------------------------------------------------- good recordings


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 1), (48000, 2), (44100, 2)])
@pytest.mark.parametrize("copy_all", [False, True])
def test_every_format_rate_and_channel_count_loads_as_16_khz_mono(tmp_path, suffix, rate, channels, copy_all):
    kind, subtype = FORMATS[suffix]
    if subtype == "OPUS" and rate == 44100:
        pytest.skip("Opus has no 44.1 kHz")
    if not soundfile.check_format(kind, subtype):
        pytest.skip(f"this libsndfile writes no {subtype}")
    path = tmp_path / f"tone.{suffix}"
    samples = np.repeat(tone(rate, seconds=1.5)[:, None], channels, axis=1)
    soundfile.write(path, samples, rate, format=kind, subtype=subtype)

    copies = tmp_path / "copies"
    cut = cut_from_utterance(utterance(path), max_seconds=30, copies=copies, copy_all=copy_all)
    loaded = cut.load_audio()

    slack = 0.08 if subtype == "MPEG_LAYER_III" else 0.001  # MP3 pads with frames of silence
    assert loaded.shape == (1, cut.num_samples)
    assert cut.sampling_rate == 16000
    assert abs(loaded.shape[1] / 16000 - 1.5) <= slack
    assert abs(dominant_frequency(loaded[0], 16000) - 440) < 2
    assert np.sqrt(np.mean(loaded**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    assert copies.exists() == (copy_all or channels > 1)
    assert cut.supervisions[0].text == "two words"
    assert cut.supervisions[0].duration == cut.duration


def test_an_mp3_that_lacks_three_frames_is_rejected(tmp_path):
    """Of 576 samples: at low rates they are half as long as at high ones."""
    path = tmp_path / "a.mp3"
    noise = 0.1 * np.random.default_rng(0).standard_normal(24_000)
    soundfile.write(path, noise, 8000, format="MP3", subtype="MPEG_LAYER_III")
    assert cut_from_utterance(utterance(path), max_seconds=30).duration == pytest.approx(3, abs=0.08)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + content[middle + 3 * len(content) // (24_000 // 576) :])
    assert reason(utterance(path)).startswith("truncated")


def test_downmix_is_the_mean_of_all_channels(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(16000, frequency=300), tone(16000, frequency=1000)], 1), 16000)
    loaded = cut_from_utterance(utterance(path), max_seconds=30, copies=tmp_path / "c").load_audio()[0]
    expected = (tone(16000, frequency=300) + tone(16000, frequency=1000)) / 2
    np.testing.assert_allclose(loaded, expected, atol=1e-4)


@pytest.mark.parametrize("copy_all", [False, True])
def test_a_stretch_holds_what_lies_between_start_and_end(tmp_path, copy_all):
    path = tmp_path / "long.wav"
    parts = [tone(8000, 1.0, frequency) for frequency in (300, 700, 1100)]
    soundfile.write(path, np.concatenate(parts), 8000)
    utt = utterance(path, start=1.0, end=2.0)
    cut = cut_from_utterance(utt, max_seconds=1.5, copies=tmp_path / "copies", copy_all=copy_all)
    loaded = cut.load_audio()
    assert loaded.shape == (1, 16000)
    assert abs(dominant_frequency(loaded[0], 16000) - 700) < 2


def test_a_copy_is_used_again_until_its_source_changes(tmp_path):
    path, copies = tmp_path / "a.wav", tmp_path / "copies"
    make = functools.partial(cut_from_utterance, max_seconds=30, copies=copies, copy_all=True)
    soundfile.write(path, tone(16000, frequency=300), 16000)
    first = make(utterance(path))
    written = (copies / "a.flac").stat().st_mtime_ns
    assert make(utterance(path)) == first
    assert (copies / "a.flac").stat().st_mtime_ns == written
    soundfile.write(path, tone(16000, 2.0, frequency=500), 16000)
    second = make(utterance(path))
    assert second.duration == 2.0
    assert abs(dominant_frequency(second.load_audio()[0], 16000) - 500) < 2


def test_a_copy_left_half_written_is_made_anew(tmp_path):
    path, copies = tmp_path / "a.wav", tmp_path / "copies"
    soundfile.write(path, tone(16000), 16000)
    copies.mkdir()
    (copies / "a.flac").write_bytes(b"fLaC and then nothing")
    cut = cut_from_utterance(utterance(path), max_seconds=30, copies=copies, copy_all=True)
    np.testing.assert_allclose(cut.load_audio()[0], tone(16000), atol=1e-4)


def test_samples_beyond_full_scale_are_scaled_and_not_clipped(tmp_path):
    write_audio(tmp_path / "loud.flac", 3 * tone(16000) / 0.3)
    loaded, _ = soundfile.read(tmp_path / "loud.flac")
    np.testing.assert_allclose(loaded, tone(16000) / 0.3, atol=2e-3)


def test_ffmpeg_is_asked_for_16_khz_mono_and_its_answer_kept_as_a_copy(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    raw = tmp_path / "answer.f32"
    tone(16000).astype("<f4").tofile(raw)
    script = tmp_path / "fake.py"
    script.write_text(
        "import sys\n"
        "assert '-ac 1 -ar 16000 -f f32le' in ' '.join(sys.argv)\n"
        f"sys.stdout.buffer.write(open({str(raw)!r}, 'rb').read())\n"
    )
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    path = tmp_path / "a.m4a"
    path.write_bytes(b"not decoded in this test")
    cut = cut_from_utterance(utterance(path), max_seconds=30, copies=tmp_path / "copies")
    np.testing.assert_allclose(cut.load_audio()[0], tone(16000), atol=1e-4)


# ---------------------------------------------------------------- bad recordings


def write_float(path: Path, samples: np.ndarray) -> Path:
    soundfile.write(path, samples, 16000, format="WAV", subtype="FLOAT")
    return path


def test_missing_empty_and_fake_files_are_rejected(tmp_path, monkeypatch):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is a text file and no sound at all\n" * 20)
    (tmp_path / "a.m4a").write_bytes(b"\0" * 100)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason(utterance(tmp_path / "none.wav")).startswith("missing")
    assert reason(utterance(tmp_path / ("x" * 300 + ".wav"))).startswith("missing")
    assert reason(utterance(tmp_path)).startswith("missing")
    assert reason(utterance(tmp_path / "empty.wav")).startswith("empty")
    assert reason(utterance(tmp_path / "text.wav")).startswith("unreadable")
    assert "ffmpeg" in reason(utterance(tmp_path / "a.m4a"))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("make_cut", [cut_from_utterance, cut_from_header])
def test_a_file_cut_short_is_rejected(tmp_path, suffix, make_cut):
    whole, short = tmp_path / f"whole.{suffix}", tmp_path / f"short.{suffix}"
    kind, subtype = FORMATS[suffix]
    soundfile.write(whole, np.random.default_rng(0).normal(size=160_000) * 0.1, 16000, format=kind, subtype=subtype)
    short.write_bytes(whole.read_bytes()[: -whole.stat().st_size // 3])
    make_cut(utterance(whole), max_seconds=30)
    with pytest.raises(Rejected, match=r"^(truncated|unreadable)"):
        make_cut(utterance(short), max_seconds=30)


@pytest.mark.parametrize("make_cut", [cut_from_utterance, cut_from_header])
@pytest.mark.parametrize("rate", [3_999, 384_001, 2_000_000_000])
def test_a_rate_that_no_recording_has_is_rejected(tmp_path, rate, make_cut):
    soundfile.write(tmp_path / "a.wav", tone(rate=160_000), rate)
    with pytest.raises(Rejected, match=rf"^implausible sampling rate: {rate} Hz|^too short"):
        make_cut(utterance(tmp_path / "a.wav"), max_seconds=100)


@pytest.mark.parametrize("suffix", ["opus", "vorbis.ogg"])
def test_ogg_cut_anywhere_is_rejected(tmp_path, suffix):
    whole, short = tmp_path / f"whole.{suffix}", tmp_path / f"short.{suffix}"
    kind, subtype = FORMATS[suffix]
    soundfile.write(whole, tone(16000, seconds=3.3), 16000, format=kind, subtype=subtype)
    content = whole.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 50)):
        short.write_bytes(content[:length])
        assert reason(utterance(short)).startswith(("empty", "unreadable", "truncated"))
    short.write_bytes(content[:-1])
    assert reason(utterance(short)).startswith("truncated")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_the_header_gives_the_same_cut_as_decoding(tmp_path, suffix, rate):
    kind, subtype = FORMATS[suffix]
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(rate, seconds=1.2345), rate, format=kind, subtype=subtype)
    for stretch in ({}, {"start": 0.25, "end": 1.0}):
        utt = utterance(path, gender="female", **stretch)
        assert cut_from_header(utt, max_seconds=30) == cut_from_utterance(utt, max_seconds=30)


def test_what_the_header_tells_is_enough_for_these_reasons(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(8000, 3.0), 8000)
    soundfile.write(tmp_path / "short.flac", tone(16000, 0.05), 16000)
    soundfile.write(tmp_path / "stereo.flac", np.stack([tone(16000)] * 2, 1), 16000)
    (tmp_path / "empty.flac").touch()
    cases = {
        "wrong sampling rate": utterance(tmp_path / "a.flac"),
        "too short": utterance(tmp_path / "short.flac"),
        "not mono": utterance(tmp_path / "stereo.flac"),
        "empty": utterance(tmp_path / "empty.flac"),
        "missing": utterance(tmp_path / "none.flac"),
        "transcript too long": utterance(tmp_path / "a.flac", "a " * 40),
        "no transcript": utterance(tmp_path / "a.flac", " "),
    }
    for expected, utt in cases.items():
        rates = (16000, 48000) if expected == "wrong sampling rate" else None
        for make_cut in (cut_from_header, cut_from_utterance):
            with pytest.raises(Rejected, match=expected):
                make_cut(utt, max_seconds=30, rates=rates)
    with pytest.raises(Rejected, match="too long"):
        cut_from_header(utterance(tmp_path / "a.flac"), max_seconds=2.9)


def test_a_wav_written_to_a_pipe_has_no_length_and_is_accepted(tmp_path):
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(16000), 16000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert cut_from_utterance(utterance(path), max_seconds=30).load_audio().shape == (1, 16000)


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        (np.zeros(0), "empty"),
        (tone(16000, seconds=0.05), "too short"),
        (np.zeros(16000), "silent"),
        (np.full(16000, 0.25), "silent"),
        (np.where(np.arange(16000) == 77, np.nan, 0.1), "NaN samples"),
        (np.where(np.arange(16000) == 77, np.inf, 0.1), "NaN samples"),
    ],
)
def test_samples_that_teach_nothing_are_rejected(tmp_path, samples, kind):
    with pytest.raises(Rejected, match=kind):
        check_samples(samples, 16000)
    assert reason(utterance(write_float(tmp_path / "a.wav", samples))).startswith(kind)


def test_quiet_speech_is_not_silence():
    check_samples(tone(16000) / 300, 16000)


def test_length_and_stretch_are_checked(tmp_path):
    path = write_float(tmp_path / "a.wav", tone(16000, 3.0))
    assert reason(utterance(path), max_seconds=2.9).startswith("too long")
    cut_from_utterance(utterance(path), max_seconds=3.0)
    assert reason(utterance(path, start=2.0, end=1.0)).startswith("end before start")
    assert reason(utterance(path, start=1.0, end=1.0)).startswith("end before start")
    assert reason(utterance(path, start=-1.0)).startswith("end before start")
    assert reason(utterance(path, start=float("nan"))).startswith("end before start")
    assert reason(utterance(path, start=2.0, end=4.0)).startswith("beyond the end")
    assert reason(utterance(path, start=9.0)).startswith("beyond the end")


def test_stereo_needs_a_folder_for_copies(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(16000)] * 2, 1), 16000)
    assert reason(utterance(tmp_path / "a.wav")).startswith("not mono")


def test_transcripts_are_rejected_when_absent_or_longer_than_the_frames():
    for text in ("", "  \n"):
        with pytest.raises(Rejected, match="no transcript"):
            check_transcript(text, 1.0)
    check_transcript(" ".join(["a"] * 12), 0.96)  # 12 frames of 80 ms, 12 words
    with pytest.raises(Rejected, match="transcript too long"):
        check_transcript(" ".join(["a"] * 13), 0.96)


# ---------------------------------------------------------------- a whole corpus


@pytest.fixture
def corpus(tmp_path) -> list[Utterance | Rejection]:
    """40 good and 4 bad entries, in two splits and two languages."""
    items: list[Utterance | Rejection] = []
    for number in range(40):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, tone(8000, 0.5 + number / 100, 200 + 10 * number), 8000)
        split, language = ("dev" if number % 4 == 0 else "train"), ("de" if number % 2 else "en")
        items.append(utterance(path, "zwölf Äpfel", split=split, language=language))
    (tmp_path / "bad.wav").write_text("no sound")
    items.insert(3, utterance(tmp_path / "bad.wav"))
    items.insert(9, Rejection("dev", "line", "table.tsv", "broken line: table.tsv:4:\ttab\nin it"))
    items.append(utterance(tmp_path / "7.wav"))
    items.append(utterance(tmp_path / "8.wav", id="other", split="rehearsal"))
    return items


def manifests(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.iterdir()) if path.is_file()}


def lines(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()


def test_any_number_of_jobs_and_any_rerun_gives_the_same_bytes(tmp_path, corpus):
    for output, jobs in (("one", 1), ("two", 2)):
        prepare(corpus, tmp_path / output, jobs=jobs, max_seconds=30)
    once = manifests(tmp_path / "one")
    assert set(once) == {"train.jsonl.gz", "dev.jsonl.gz", "quarantine.tsv"}
    assert manifests(tmp_path / "two") == once
    prepare(corpus, tmp_path / "one", jobs=1, max_seconds=30)
    assert manifests(tmp_path / "one") == once


def test_every_entry_is_in_a_manifest_or_in_the_quarantine_in_the_order_given(tmp_path, corpus, capsys):
    summary = prepare(corpus, tmp_path / "out", jobs=1, max_seconds=30)
    dev = [cut.id for cut in CutSet.from_file(tmp_path / "out" / "dev.jsonl.gz")]
    train = [cut.id for cut in CutSet.from_file(tmp_path / "out" / "train.jsonl.gz")]
    assert dev == [str(number) for number in range(0, 40, 4)]
    assert train == [str(number) for number in range(40) if number % 4]
    header, *lines = (tmp_path / "out" / "quarantine.tsv").read_text().splitlines()
    assert header.split("\t") == ["split", "id", "path", "reason", "source"]
    rows = [line.split("\t") for line in lines]
    assert [row[1] for row in rows] == ["bad", "line", "7", "other"]
    assert all(len(row) == 5 for row in rows)
    kinds = [row[3].split(":")[0] for row in rows]
    assert kinds == ["unreadable", "broken line", "duplicate id", "unknown split"]
    assert rows[1][3] == "broken line: table.tsv:4:\\ttab\\nin it"
    assert summary.rejected.total() + len(dev) + len(train) == len(corpus)
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in kinds)
    assert "rejected: 4" in printed


def test_progress_ends_at_100_percent_of_what_was_there(tmp_path, corpus, capsys):
    """Whoever counts lines beforehand counts headers and empty ones, too."""
    prepare(iter(corpus), tmp_path / "out", jobs=1, max_seconds=30, total=len(corpus) + 1)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("checking: 100%")
    assert f" {len(corpus)}/{len(corpus)} " in last


def test_the_quarantine_cannot_write_to_the_terminal_or_begin_a_line(tmp_path, corpus):
    items = [*corpus[:2], Rejection("train", "a\x1b[2J", "b\u2028c\udcff.wav", "broken\x85line", "d\re")]
    prepare(items, tmp_path / "out", jobs=1, max_seconds=30)
    _, row, end = (tmp_path / "out" / "quarantine.tsv").read_bytes().decode().split("\n")
    assert row.split("\t") == ["train", "a\\x1b[2J", "b\\u2028c\\udcff.wav", "broken\\x85line", "d\\re"]
    assert end == ""


def test_an_interrupted_run_leaves_the_old_manifests_and_can_be_repeated(tmp_path, corpus):
    output = tmp_path / "out"
    prepare(corpus[:20], output, jobs=1, max_seconds=30)
    before = manifests(output)

    def interrupted(utt: Utterance):
        if utt.id == "30":
            raise KeyboardInterrupt
        return cut_from_utterance(utt, max_seconds=30)

    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, output, jobs=1, max_seconds=30, make_cut=interrupted)
    assert manifests(output) == before
    prepare(corpus, output, jobs=1, max_seconds=30)
    prepare(corpus, tmp_path / "never_stopped", jobs=1, max_seconds=30)
    assert manifests(output) == manifests(tmp_path / "never_stopped")


def test_manifests_that_cannot_be_written_leave_the_old_ones_and_nothing_is_checked_twice(
    tmp_path, corpus, monkeypatch
):
    output = tmp_path / "out"
    prepare(corpus[:20], output, jobs=1, max_seconds=30)
    before = manifests(output)

    def full_disk(paths: list[Path], target) -> None:
        target.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("data_prep.corpora.preparation.join_files", full_disk)
        with pytest.raises(OSError):
            prepare(corpus, output, jobs=1, max_seconds=30)
    assert manifests(output) == before
    monkeypatch.setattr("data_prep.corpora.checked_cuts.read_audio", None)  # would fail at the first recording
    prepare(corpus, output, jobs=1, max_seconds=30)
    monkeypatch.undo()
    prepare(corpus, tmp_path / "never_stopped", jobs=1, max_seconds=30)
    assert manifests(output) == manifests(tmp_path / "never_stopped")


@pytest.mark.parametrize("piece", [1, 7, 43, 44, 45])
def test_pieces_of_any_size_give_the_same_manifests_and_an_interrupted_run_goes_on(
    tmp_path, corpus, monkeypatch, piece
):
    prepare(corpus, tmp_path / "whole", jobs=1, max_seconds=30)
    monkeypatch.setattr("data_prep.corpora.preparation.PIECE", piece)
    opened = []

    def make_cut(utt: Utterance) -> MonoCut:
        if utt.id == "30" and "30" not in opened:
            opened.append("30")
            raise KeyboardInterrupt
        opened.append(utt.id)
        return cut_from_utterance(utt, max_seconds=30)

    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            prepare(corpus, tmp_path / "out", jobs=1, max_seconds=30, make_cut=make_cut)
    assert {name: lines(tmp_path / "out" / name) for name in manifests(tmp_path / "whole")} == {
        name: lines(tmp_path / "whole" / name) for name in manifests(tmp_path / "whole")
    }
    assert len(opened) - len(set(opened)) <= piece  # of the unfinished piece alone
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(manifests(tmp_path / "whole"))


def test_pieces_of_other_utterances_or_settings_are_not_used(tmp_path, corpus, monkeypatch):
    def fail(paths: list[Path], target) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("data_prep.corpora.preparation.join_files", fail)
        with pytest.raises(OSError):
            prepare(corpus, tmp_path / "out", jobs=1, max_seconds=0.7)
    corpus[5] = dataclasses.replace(corpus[5], text="another text")
    prepare(corpus, tmp_path / "out", jobs=1, max_seconds=30)
    prepare(corpus, tmp_path / "anew", jobs=1, max_seconds=30)
    assert manifests(tmp_path / "out") == manifests(tmp_path / "anew")


def test_a_strict_run_stops_at_the_first_rejection_in_the_order_of_the_corpus(tmp_path, corpus):
    corpus[3] = dataclasses.replace(corpus[3], source="table.tsv:5")
    for jobs in (1, 2):
        with pytest.raises(Refused, match=r"table.tsv:5 bad: unreadable.*bad.wav"):
            prepare(corpus, tmp_path / "out", jobs=jobs, max_seconds=30, strict=True)
    assert not list((tmp_path).glob("out/*.*"))


def test_utterances_are_read_as_they_are_checked_and_not_held(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    monkeypatch.setattr("data_prep.corpora.preparation.PIECE", 10)
    alive: weakref.WeakSet[Utterance] = weakref.WeakSet()
    most = 0

    def endless() -> Iterator[Utterance]:
        nonlocal most
        for number in range(100):
            item = utterance(tmp_path / "a.wav", id=str(number))
            alive.add(item)
            most = max(most, len(alive))
            yield item

    prepare(endless(), tmp_path / "out", jobs=1, max_seconds=30)
    assert most <= 2 * 10 + 1


def test_a_split_that_is_gone_from_the_corpus_is_gone_from_the_output(tmp_path, corpus):
    prepare(corpus, tmp_path / "out", jobs=1, max_seconds=30)
    only_train = [item for item in corpus if item.split == "train"]
    prepare(only_train, tmp_path / "out", jobs=1, max_seconds=30)
    assert set(manifests(tmp_path / "out")) == {"train.jsonl.gz", "quarantine.tsv"}


def test_a_corpus_without_a_usable_recording_is_an_error_and_keeps_the_manifests(tmp_path, corpus):
    prepare(corpus, tmp_path / "out", jobs=1, max_seconds=30)
    train = (tmp_path / "out" / "train.jsonl.gz").read_bytes()
    with pytest.raises(UserError, match="all 44 were rejected"):
        prepare(corpus, tmp_path / "out", jobs=1, max_seconds=0.1)
    assert (tmp_path / "out" / "train.jsonl.gz").read_bytes() == train
    assert (tmp_path / "out" / "quarantine.tsv").read_text().count("too long") == 40


def test_the_summary_counts_utterances_and_seconds_per_language(tmp_path, corpus):
    summary = prepare(corpus, tmp_path / "out", jobs=1, max_seconds=30)
    rows = [line.split() for line in summary.table().splitlines()]
    table = {(row[0], row[1]): (int(row[2]), float(row[4])) for row in rows if len(row) == 5 and row[2].isdigit()}
    lengths = {number: 0.5 + number / 100 for number in range(40)}
    german = [seconds for number, seconds in lengths.items() if number % 2]
    everything = [seconds for number, seconds in lengths.items() if number % 4]
    assert table["train", "de"] == (len(german), round(sum(german)))
    assert table["train", "all"] == (len(everything), round(sum(everything)))


def test_the_manifest_is_plain_utf_8_json_lines(tmp_path, corpus):
    prepare(corpus, tmp_path / "out", jobs=1, max_seconds=30)
    assert "zwölf Äpfel" in gzip.decompress((tmp_path / "out" / "dev.jsonl.gz").read_bytes()).decode()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Refused("--strict: t.tsv:5: silent"), 1, "error: --strict: t.tsv:5: silent"),
        (UserError("table x has no text column"), 2, "error: table x has no text column"),
        (OSError(28, "No space left on device", "out"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_program_ends_with_one_line_and_a_status(capsys, error, status, words):
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        run(main)
    assert exit_.value.code == status
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1
