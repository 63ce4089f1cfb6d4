"""`speechllm transcribe`: each text is printed when it is there, whatever becomes of the others."""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import SPLITS
from listener import Listener

from speechllm_pl.apps.transcript_files import SOURCES
from speechllm_pl.recognition.formats import FORMATS


@pytest.fixture
def transcribe(speechllm, corpus: Path, monkeypatch: pytest.MonkeyPatch):
    """The eight training utterances, of 1 to 5 words of 0.35 s, in batches of at most 2.5 s."""
    files = [corpus / f"train-{number}.wav" for number in range(len(SPLITS["train"]))]

    def run(recognizer: Listener, *more: object):
        monkeypatch.setattr("speechllm_pl.apps.transcribe.Recognizer.load", lambda *_, **__: recognizer)
        options = ("--checkpoint", "x", "--max_duration", 2.5, "--guard", "false")  # the words are tones
        return speechllm("transcribe", *files, *more, *options), files

    return run


def lines(files: list[Path], count: int) -> list[str]:
    samples = [800 + len(text.split()) * 5600 for text in SPLITS["train"]]
    return [f"{file}: {length} samples" for file, length in zip(files[:count], samples[:count], strict=True)]


def printable_after(batches: list[list[int]]) -> int:
    """Number of files from the first one on that all are in one of the batches."""
    left = sorted(samples for batch in batches for samples in batch)
    for count, text in enumerate(SPLITS["train"]):
        if (samples := 800 + len(text.split()) * 5600) not in left:
            return count
        left.remove(samples)
    return len(SPLITS["train"])


def test_texts_are_printed_when_they_are_there_in_the_order_of_the_files(
    transcribe, monkeypatch, tmp_path: Path
) -> None:
    """Before a batch is recognised, whoever reads the output has the texts of all files whose turn it is."""
    arrived: list[list[str]] = []
    recognizer = Listener(lambda _: arrived.append((tmp_path / "out").read_text().splitlines()))
    with (tmp_path / "out").open("w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        done, files = transcribe(recognizer)
    assert done.status == 0, done.err
    given = [printable_after(recognizer.batches[:number]) for number in range(len(recognizer.batches))]
    assert len(recognizer.batches) >= 4
    assert max(given) > min(given[1:]) > 0
    assert arrived == [lines(files, count) for count in given]
    assert (tmp_path / "out").read_text().splitlines() == lines(files, 8)


def test_batches_are_as_long_as_was_said_with_padding(transcribe) -> None:
    recognizer = Listener(lambda _: None)
    transcribe(recognizer)
    long = [[samples / 16_000 for samples in batch] for batch in recognizer.batches]
    assert all(max(batch) * len(batch) <= 2.5 for batch in long)
    assert sum(len(batch) > 1 for batch in long) >= 2


def test_an_interruption_leaves_what_is_printed_and_ends_with_one_line(transcribe, corpus: Path) -> None:
    def interrupt(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    recognizer = Listener(interrupt)
    done, files = transcribe(recognizer, corpus / "missing.wav")
    count = printable_after(recognizer.batches)
    assert count
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


def test_a_refused_file_is_told_when_it_is_met(transcribe, corpus: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    told: list[str] = []
    recognizer = Listener(lambda _: told.append(capsys.readouterr().err))
    done, _ = transcribe(recognizer, tmp_path / "bad.wav", corpus / "dev-0.wav")  # which is heard afterwards
    assert f"left out {tmp_path / 'bad.wav'}: not audio" in "".join(told)
    assert f"1 of 10 files refused: {tmp_path / 'bad.wav'}: not audio" in done.error()


def test_progress_counts_files_to_the_last(transcribe, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    done, _ = transcribe(Listener(lambda _: None), tmp_path / "bad.wav")
    bars = [line for line in done.err.replace("\r", "\n").splitlines() if line.startswith("transcribing: ")]
    assert "| 9/9 [" in bars[-1]
    assert bars[-1].startswith("transcribing: 100%")


def test_the_bar_tells_how_much_faster_than_real_time_it_is(transcribe) -> None:
    done, _ = transcribe(Listener(lambda _: None))
    bars = [line for line in done.err.replace("\r", "\n").splitlines() if line.startswith("transcribing: ")]
    minutes = sum(0.05 + 0.35 * len(text.split()) for text in SPLITS["train"]) / 60
    assert f"{minutes:.1f} of {minutes:.1f} min of audio read, RTFx " in bars[-1]


def test_audio_counts_when_its_transcript_is_there(transcribe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the speed of reading ahead would stand in the bar."""
    shown: list[str] = []
    monkeypatch.setattr("tqdm.tqdm.set_postfix_str", lambda _, text, **__: shown.append(text))
    before_the_first: list[str] = []
    done, _ = transcribe(Listener(lambda batch: before_the_first.extend(shown if batch == 0 else ())))
    assert done.status == 0, done.err
    assert before_the_first
    assert {(text.split()[0], text.split()[-1]) for text in before_the_first} == {("0.0", "0.0")}
    assert float(shown[-1].split()[-1]) > 0


# files of transcripts


@pytest.fixture
def recordings(corpus: Path, tmp_path: Path) -> Path:
    """A folder of three recordings, two of one name."""
    folder = tmp_path / "in"
    for number, name in enumerate(("a.wav", "b.wav", "sub/a.wav")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((corpus / f"train-{number}.wav").read_bytes())
    return folder


@pytest.fixture
def written(speechllm, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(*more: object, before=lambda _: None):
        listener = Listener(before)
        monkeypatch.setattr("speechllm_pl.apps.transcribe.Recognizer.load", lambda *_, **__: listener)
        given = ("transcribe", recordings, "--checkpoint", "x", "--output_dir", tmp_path / "out", *more)
        return speechllm(*given, "--guard", "false"), listener

    return run


def names(folder: Path) -> list[str]:
    """Files in a folder, but for the note of their sources."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != SOURCES)
    return sorted(str(path.relative_to(folder)) for path in found)


def test_every_audio_file_has_files_of_its_own(written, tmp_path: Path) -> None:
    done, _ = written("--format", "all")
    assert done.status == 0, done.err
    expected = [f"{name}.{suffix}" for name in ("a", "b", "sub/a") for suffix in FORMATS]
    assert names(tmp_path / "out") == sorted(expected)
    assert (tmp_path / "out" / "sub" / "a.txt").read_text() == "23200 samples\n"
    assert [*map(Path, done.out.splitlines())] == [tmp_path / "out" / name for name in expected]
    assert json.loads((tmp_path / "out" / "b.json").read_text())["text"] == "12000 samples"


def test_a_template_names_the_files(written, tmp_path: Path) -> None:
    done, _ = written("--output_template", "texts/{folder}-{name}-{suffix}")
    assert done.status == 0, done.err
    assert names(tmp_path / "out") == ["texts/.-a-wav.txt", "texts/.-b-wav.txt", "texts/sub-a-wav.txt"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--output_template", "{name}"), "several audio files would be written to"),
        (("--output_template", "{title}"), "{title}, which is unknown: give one of {folder}, {name}, {suffix}"),
        (("--output_template", "{name"), "is no template"),
    ],
)
def test_a_template_that_cannot_be_is_refused(written, tmp_path: Path, more, told: str) -> None:
    done, _ = written(*more)
    assert told in done.error()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(written, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    done, listener = written()
    assert f"into folder {tmp_path / 'out'} ({tmp_path / 'out'} is a file): give another --output_dir" in done.error()
    assert not listener.batches


def test_what_is_there_is_left_as_it_is(written, recordings: Path, tmp_path: Path) -> None:
    def interrupt(batch: int) -> None:
        if batch == 1:
            raise KeyboardInterrupt

    done, _ = written("--max_duration", 1.2, before=interrupt)
    assert done.status == 130
    assert "1 of 3 files are transcribed: run the same command again" in done.err
    assert names(tmp_path / "out") == ["a.txt"]
    (tmp_path / "out" / "a.txt").write_text("mine\n")
    done, listener = written()
    assert done.status == 0, done.err
    assert "1 of 3 files are transcribed already" in done.err
    assert sum(map(len, listener.batches)) == 2
    assert (tmp_path / "out" / "a.txt").read_text() == "mine\n"
    os.utime(recordings / "a.wav", (2e9, 2e9))  # it is another recording now
    done, listener = written()
    assert [len(batch) for batch in listener.batches] == [1]
    assert (tmp_path / "out" / "a.txt").read_text() == "17600 samples\n"


def test_what_was_transcribed_otherwise_is_told(written, tmp_path: Path) -> None:
    """Of each file, however often and with whatever the others were made."""
    out, checkpoint = tmp_path / "out", tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"")
    os.utime(checkpoint, (1e9, 1e9))
    before = ("--checkpoint", checkpoint, "--max_new_tokens", 9)

    def warnings(*options: object) -> list[str]:
        done, _ = written(*options)
        assert done.status == 0, done.err
        return [line for line in done.err.splitlines() if line.startswith("warning: ") and "otherwise" in line]

    assert not warnings(*before)
    assert not warnings(*before, "--device", "cpu", "--max_duration", 9)  # on which no text depends
    (told,) = warnings("--checkpoint", checkpoint)
    assert "3 of them were transcribed otherwise (max_new_tokens 9, now default): delete their transcripts" in told
    assert not warnings(*before[:2], "--format", "json")
    (told,) = warnings("--checkpoint", checkpoint)  # the other format was made anew, this one was not
    assert "(max_new_tokens 9, now default)" in told
    os.utime(checkpoint, (1.1e9, 1.1e9))
    (told,) = warnings(*before)
    assert "(written 2001-09-09T01:46:40+00:00, now 2004-11-09T11:33:20+00:00)" in told
    (told,) = warnings("--max_new_tokens", 9)
    assert f"checkpoint {checkpoint}, now {Path('x').resolve()}, " in told
    (out / "b.txt").unlink()
    (told,) = warnings("--max_new_tokens", 9)
    assert told.startswith("warning: 2 of them")
    (out / SOURCES).write_text("".join(f"{json.dumps(row[:2])}\n" for row in noted(out)))  # by an earlier version
    assert not warnings()


def noted(folder: Path) -> list[list]:
    return [json.loads(line) for line in (folder / SOURCES).read_text().splitlines()]


def test_failures_are_told_at_the_end_and_the_others_written(written, recordings: Path, tmp_path: Path) -> None:
    (recordings / "c.wav").write_text("no audio")
    done, _ = written()
    assert f"1 of 4 files refused: {recordings / 'c.wav'}: not audio" in done.error()
    assert names(tmp_path / "out") == ["a.txt", "b.txt", "sub/a.txt"]


@pytest.mark.parametrize("format", ["txt", "srt", "vtt", "tsv", "ctm"])
def test_one_files_transcript_may_be_printed_in_any_format(transcribe, corpus: Path, speechllm, format: str) -> None:
    transcribe(Listener())  # puts a listener in the model's place
    options = ("--checkpoint", "x", "--format", format, "--guard", "false")
    done = speechllm("transcribe", corpus / "train-0.wav", *options)
    assert done.status == 0, done.err
    words = done.out.split()
    assert "17600" in words
    assert "samples" in words


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--format", "srt"), "8 files in one output of format srt: give --output_dir"),
        (("--format", "all"), "format all writes files: give --output_dir"),
        (("--output_template", "{name}"), "output_template has no effect without output_dir"),
    ],
)
def test_options_that_do_not_go_together_are_refused(transcribe, more, told: str) -> None:
    done, _ = transcribe(Listener(), *more)
    assert told in done.error()


# recordings of one name in several folders


@pytest.fixture
def of_one_name(speechllm, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Transcribes a/x.wav and b/x.wav, which have 17600 and 12000 samples."""
    given = [tmp_path / "in" / folder / "x.wav" for folder in "ab"]
    for number, path in enumerate(given):
        path.parent.mkdir(parents=True)
        path.write_bytes((corpus / f"train-{number}.wav").read_bytes())
    monkeypatch.setattr("speechllm_pl.apps.transcribe.Recognizer.load", lambda *_, **__: Listener())

    def run(*more: object, files=given):
        done = speechllm("transcribe", *files, "--checkpoint", "x", "--guard", "false", *more)
        return done, given

    return run


@pytest.mark.parametrize("folders", [False, True])
def test_files_of_one_name_in_several_folders_are_kept_apart(of_one_name, tmp_path: Path, folders: bool) -> None:
    files = {"files": [tmp_path / "in" / folder for folder in "ab"]} if folders else {}
    done, _ = of_one_name("--output-dir", tmp_path / "out", **files)
    assert done.status == 0, done.err
    assert names(tmp_path / "out") == ["a/x.txt", "b/x.txt"]
    assert [(tmp_path / "out" / folder / "x.txt").read_text() for folder in "ab"] == [
        "17600 samples\n",
        "12000 samples\n",
    ]


def test_files_that_differ_in_their_suffix_are_refused_with_a_remedy_that_loses_none(
    of_one_name, corpus: Path, tmp_path: Path
) -> None:
    _, (first, _) = of_one_name()
    first.with_suffix(".flac").write_bytes((corpus / "train-3.wav").read_bytes())
    both = {"files": [first, first.with_suffix(".flac")]}
    out = ("--output-dir", tmp_path / "out")
    assert "or give them apart and each another --output_dir" in of_one_name(*out, **both)[0].error()
    done, _ = of_one_name(*out, "--output_template", "{folder}/{name}-{suffix}", **both)
    assert done.status == 0, done.err
    assert names(tmp_path / "out") == ["x-flac.txt", "x-wav.txt"]
    printed, _ = of_one_name("--format", "ctm", **both)
    assert {line.split()[0] for line in printed.out.splitlines()} == {"x.wav", "x.flac"}


def test_files_of_one_name_are_kept_apart_in_commands_of_their_own(of_one_name, tmp_path: Path) -> None:
    """Neither skipped nor overwritten, and each command may be repeated."""
    _, (first, second) = of_one_name()
    out = tmp_path / "out"
    given = ("--output-dir", out)
    assert of_one_name(*given, files=[first])[0].status == 0
    for format in ("txt", "json"):
        refused = of_one_name(*given, "--format", format, files=[second])[0].error()
        assert f"{out / 'x.txt'} is the transcript of {first}, not of {second}: give another --output_dir" in refused
        assert f"delete {out / SOURCES}" in refused
    assert (out / "x.txt").read_text() == "17600 samples\n"
    done, _ = of_one_name(*given, files=[first.parent / ".." / "a" / "x.wav"])  # the same in other words
    assert "1 of 1 files are transcribed already" in done.err
    assert of_one_name(*given, "--output_template", "{name}-2", files=[second])[0].status == 0
    assert names(out) == ["x-2.txt", "x.txt"]
    (out / "x.txt").unlink()  # its place is free
    assert of_one_name(*given, files=[second])[0].status == 0
    assert (out / "x.txt").read_text() == "12000 samples\n"
    assert f"is the transcript of {second}" in of_one_name(*given, files=[first])[0].error()
    (out / SOURCES).write_text("[]\n")
    assert f"{out / SOURCES} is damaged: delete it" in of_one_name(*given, files=[first])[0].error()


def test_ctm_names_each_recording(of_one_name) -> None:
    done, (first, _) = of_one_name("--format", "ctm")
    assert done.status == 0, done.err
    assert [(line.split()[0], line.split()[4]) for line in done.out.splitlines()] == [
        ("a/x", "17600"),
        ("a/x", "samples"),
        ("b/x", "12000"),
        ("b/x", "samples"),
    ]
    alone, _ = of_one_name("--format", "ctm", files=[first])
    assert {line.split()[0] for line in alone.out.splitlines()} == {"x"}


def test_json_is_the_same_printed_and_in_files(of_one_name, tmp_path: Path) -> None:
    printed, given = of_one_name("--format", "json")
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert of_one_name("--format", "json", "--output-dir", tmp_path / "out")[0].status == 0
    assert [json.loads((tmp_path / "out" / folder / "x.json").read_text()) for folder in "ab"] == rows
    assert [(row["file"], row["recording"], row["seconds"]) for row in rows] == [
        (str(given[0]), "a/x", 1.1),
        (str(given[1]), "b/x", 0.75),
    ]
