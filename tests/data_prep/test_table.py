"""Tables of every kind, good and bad, with recordings made here with numpy and soundfile."""

import csv
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from data_prep import table
from data_prep.machinery.command_line import Refused
from speechllm_pl.core.errors import UserError

REAL_DATA = Path(os.environ.get("SPEECHLLM_DATA", "../shared/data"))


def write_tone(path: Path, *, frequency: float = 440.0, rate: int = 16000, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)
    kind = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, samples, rate, **kind)
    return path


@pytest.fixture
def audio(tmp_path) -> Path:
    for number, name in enumerate(("a.wav", "b.flac", "c.opus", "deep/d.WAV")):
        write_tone(tmp_path / "audio" / name, frequency=300 + 100 * number)
    return tmp_path / "audio"


def prepare(table_path: Path, *arguments: str) -> dict[str, dict]:
    """Run the program in this process; id → cut, over all splits."""
    output = table_path.parent / "out"
    table.main(["--table", str(table_path), "--output", str(output), "--jobs", "1", *arguments])
    return {
        cut.id: {"split": path.name.split(".")[0], "cut": cut, "supervision": cut.supervisions[0]}
        for path in sorted(output.glob("*.jsonl.gz"))
        for cut in CutSet.from_file(path)
    }


def quarantine(table_path: Path) -> dict[str, str]:
    """id → reason."""
    lines = (table_path.parent / "out" / "quarantine.tsv").read_text().splitlines()[1:]
    return {line.split("\t")[1]: line.split("\t")[3] for line in lines}


ROWS = [
    {"id": "a", "text": "Eins, zwei!", "language": "de", "speaker": "kim", "split": "train"},
    {"id": "b", "text": "It's 7.", "language": "en-US", "speaker": "", "split": "validation"},
    {"id": "c", "text": "Trois", "language": "FR", "speaker": "léa", "split": "test"},
]


def write_rows(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


# ---------------------------------------------------------------- good tables


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_all_columns_of_every_kind_of_table_reach_the_manifest(tmp_path, audio, suffix):
    cuts = prepare(write_rows(tmp_path / f"t{suffix}", ROWS))
    assert {name: cut["split"] for name, cut in cuts.items()} == {"a": "train", "b": "dev", "c": "test"}
    told = {
        name: (cut["supervision"].text, cut["supervision"].language, cut["supervision"].speaker)
        for name, cut in cuts.items()
    }
    assert told == {
        "a": ("eins zwei", "de", "kim"),
        "b": ("it's seven", "en", "unknown"),
        "c": ("trois", "fr", "léa"),
    }
    for name, frequency in (("a", 300), ("b", 400), ("c", 500)):
        samples = cuts[name]["cut"].load_audio()
        assert samples.shape == (1, 16000)
        assert abs(np.abs(np.fft.rfft(samples[0])).argmax() - frequency) <= 2  # bins of 1 Hz


def test_a_tsv_without_header_is_id_and_text(tmp_path, audio):
    path = tmp_path / "t.tsv"
    path.write_bytes('\ufeffa\tone "quoted\nb\ttwo\r\n\nc.opus\tthree\n'.encode())
    cuts = prepare(path, "--language", "en", "--split", "dev")
    assert {name: cut["supervision"].text for name, cut in cuts.items()} == {
        "a": "one quoted",
        "b": "two",
        "c.opus": "three",
    }
    assert {cut["split"] for cut in cuts.values()} == {"dev"}


def test_paths_may_be_relative_absolute_or_without_suffix_and_give_the_id(tmp_path, audio):
    rows = [{"Path": str(audio / "a.wav")}, {"Path": "deep/d.WAV"}, {"Path": "c"}]
    path = write_rows(tmp_path / "t.csv", [row | {"Sentence": "word"} for row in rows])
    assert list(prepare(path, "--language", "en")) == ["a", "deep/d", "c"]


def test_stretches_of_one_recording_get_their_own_cuts(tmp_path, audio):
    soundfile.write(audio / "long.wav", np.random.default_rng(0).normal(size=(8000 * 4, 2)) * 0.1, 8000)
    rows = [
        {"path": "long.wav", "text": "word", "start": "0.5", "end": "2"},
        {"path": "long.wav", "text": "word", "start": "2", "end": ""},
        {"path": "long.wav", "text": "word", "start": "3", "end": "2"},
        {"path": "long.wav", "text": "word", "start": "soon", "end": "2"},
    ]
    path = write_rows(tmp_path / "t.csv", rows)
    cuts = prepare(path, "--language", "en")
    lengths = {name: cut["cut"].load_audio().shape for name, cut in cuts.items()}
    assert lengths == {"long-0.5-2": (1, 24000), "long-2": (1, 32000)}
    assert quarantine(path)["long-3-2"].startswith("end before start")
    assert quarantine(path)["long-soon-2"].startswith("broken line")


def test_a_folder_without_tables_stands_for_its_recordings_with_texts(tmp_path):
    folder = tmp_path / "talks"
    write_tone(folder / "a.flac").with_suffix(".txt").write_bytes("\ufeffOne,\n\ntwo!\n".encode())
    write_tone(folder / "b.WAV", frequency=500).with_suffix(".txt").write_text("three")
    write_tone(folder / "long.wav", seconds=40).with_suffix(".txt").write_text("four")
    write_tone(folder / "broken.wav").with_suffix(".txt").write_bytes(b"\xff")
    write_tone(folder / "empty.wav").with_suffix(".txt").write_text(" \n")
    write_tone(folder / "none.wav")
    (folder / "notes.txt").write_text("no recording")
    cuts = prepare(folder, "--language", "en", "--only-split", "test", "--max-seconds", "inf")
    assert {name: (cut["split"], cut["supervision"].text) for name, cut in cuts.items()} == {
        "a": ("test", "one two"),
        "b": ("test", "three"),
        "long": ("test", "four"),
    }
    assert cuts["long"]["cut"].load_audio().shape == (1, 640000)
    lines = (tmp_path / "out" / "quarantine.tsv").read_text()
    assert "broken.txt: not UTF-8" in lines
    assert "empty" in lines
    assert "no transcript" in lines


def test_a_folder_with_neither_tables_nor_texts_is_refused(tmp_path):
    write_tone(tmp_path / "talks" / "a.wav")
    with pytest.raises(UserError, match=r"holds no table.*recordings with texts"):
        prepare(tmp_path / "talks", "--language", "en")


def test_all_rows_may_be_of_one_split(tmp_path, audio):
    cuts = prepare(write_rows(tmp_path / "t.csv", ROWS), "--only-split", "test")
    assert [cut["split"] for cut in cuts.values()] == ["test"] * 3


def test_digits_are_kept_or_spelled(tmp_path, audio):
    path = write_rows(tmp_path / "t.csv", [{"id": "a", "text": "21 words"}])
    assert prepare(path, "--language", "en", "--digits", "keep")["a"]["supervision"].text == "21 words"
    assert prepare(path, "--language", "en")["a"]["supervision"].text == "twenty one words"


def test_characters_outside_the_alphabet_are_kept_and_reported(tmp_path, audio, capsys):
    rows = [{"id": "a", "text": "good"}, {"id": "b", "text": "жж ж"}, {"id": "c", "text": "ж"}]
    cuts = prepare(write_rows(tmp_path / "t.csv", rows), "--language", "en")
    assert cuts["b"]["supervision"].text == "жж ж"
    line = next(line for line in capsys.readouterr().out.splitlines() if "'ж'" in line)
    assert line.split() == ["en", "'ж'", "U+0436", "4", "for", "example", "in", "b"]


def test_accents_typed_as_apostrophes_are_respelled_on_request(tmp_path, audio):
    path = write_rows(tmp_path / "t.csv", [{"id": "a", "text": "Ne' campi e' cosi'"}])
    assert prepare(path, "--language", "it")["a"]["supervision"].text == "ne' campi e' cosi'"
    assert prepare(path, "--language", "it", "--respell")["a"]["supervision"].text == "né campi è così"


def test_dev_fraction_depends_on_the_id_and_the_seed_alone(tmp_path, audio):
    rows = [{"id": f"u{number}", "path": "a.wav", "text": "word"} for number in range(200)]

    def dev(rows: list[dict], seed: str) -> set[str]:
        path = write_rows(tmp_path / "t.csv", rows)
        cuts = prepare(path, "--language", "en", "--dev-fraction", "0.2", "--seed", seed)
        return {name for name, cut in cuts.items() if cut["split"] == "dev"}

    everything = dev(rows, "0")
    assert 20 <= len(everything) <= 60
    assert dev(rows[::-2], "0") == everything & {row["id"] for row in rows[::-2]}
    assert dev(rows, "1") != everything


def test_rows_and_file_names_that_name_a_split_are_not_drawn_for_dev(tmp_path, audio):
    path = write_rows(tmp_path / "test.csv", [{"id": "a", "text": "word"}])
    assert prepare(path, "--language", "en", "--dev-fraction", "1")["a"]["split"] == "test"


def test_copies_are_flac_and_the_manifest_the_same_on_a_rerun(tmp_path, audio):
    path = write_rows(tmp_path / "t.tsv", ROWS)
    first = prepare(path, "--copy-audio")
    bytes_of = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert {file.name for file in bytes_of if file.suffix == ".flac"} == {"a.flac", "b.flac", "c.flac"}
    assert all(cut["cut"].recording.sources[0].source.endswith(f"out/audio/{name}.flac") for name, cut in first.items())
    prepare(path, "--copy-audio")
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == bytes_of


def test_one_job_and_two_write_the_same_bytes(tmp_path, audio):
    path = write_rows(tmp_path / "t.csv", [*ROWS, {"id": "gone", "text": "x", "language": "en"}])
    written = []
    for jobs in ("1", "2"):
        prepare(path, "--jobs", jobs)
        written.append({file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.is_file()})
    assert written[0] == written[1]
    assert len(written[0]) == 4


# ---------------------------------------------------------------- folders of tables


@pytest.fixture
def folders(tmp_path) -> Path:
    root = tmp_path / "voices"
    for language, words in (("de", "eins"), ("nl", "een")):
        for name in ("x", "y"):
            write_tone(root / language / "audio" / f"{language}_{name}.opus")
        (root / language / "train.tsv").write_text(f"{language}_x\t{words}\n")
    (root / "nl" / "dev.tsv").write_text("nl_y\ttwee\n")
    return root


def test_a_folder_of_languages_gives_language_and_split(folders, tmp_path):
    (folders / "tlh").mkdir()
    cuts = prepare(folders)
    told = {name: (cut["split"], cut["supervision"].language) for name, cut in cuts.items()}
    assert told == {"de_x": ("train", "de"), "nl_x": ("train", "nl"), "nl_y": ("dev", "nl")}
    assert not (tmp_path / "out" / "test.jsonl.gz").exists()


def test_one_language_folder_alone_knows_its_language(folders):
    cuts = prepare(folders / "nl")
    assert {cut["supervision"].language for cut in cuts.values()} == {"nl"}


def test_a_folder_with_dev_only_is_fine(folders, tmp_path):
    (folders / "nl" / "train.tsv").unlink()
    (folders / "de" / "train.tsv").unlink()
    assert list(prepare(folders)) == ["nl_y"]


def test_tables_whose_name_is_no_split_are_named_and_not_read(folders, capsys):
    (folders / "nl" / "invalidated.tsv").write_text("nl_y\tonzin\n")
    assert prepare(folders)["nl_y"]["supervision"].text == "twee"
    assert "not read: " in capsys.readouterr().out


def test_real_voices_are_read_as_they_lie(tmp_path):
    voices = REAL_DATA / "cc0-voices"
    if not voices.is_dir():
        pytest.skip(f"needs the recordings cc0-voices in {REAL_DATA} (SPEECHLLM_DATA names another folder)")
    for language in ("de", "en", "nl"):  # the first rows of each table, beside the whole audio
        folder = tmp_path / "voices" / language
        folder.mkdir(parents=True)
        (folder / "audio").symlink_to((voices / language / "audio").resolve())
        for split in ("train", "dev"):
            lines = (voices / language / f"{split}.tsv").read_text().splitlines(keepends=True)[:4]
            (folder / f"{split}.tsv").write_text("".join(lines))
    cuts = prepare(tmp_path / "voices")
    assert len(cuts) == 24
    assert quarantine(tmp_path / "voices") == {}
    for cut in cuts.values():
        samples = cut["cut"].load_audio()
        frames = soundfile.info(cut["cut"].recording.sources[0].source).duration * 16000
        assert samples.shape[0] == 1
        assert abs(samples.shape[1] - frames) <= 1


# ---------------------------------------------------------------- bad tables


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", None, "does not exist"),
        ("t.tsv", "", "is empty"),
        ("t.csv", "id,words,path\na,b,c\n", "no text column; columns found: id, words, path"),
        ("t.tsv", "id\twords\tlanguage\na\tb\tc\n", "no text column; columns found: id, words, language"),
        ("t.jsonl", '{"id": "a", "words": "b"}\n', "no text column; columns found: id, words"),
        ("t.csv", "text,language\nword,en\n", "neither an id nor a path column"),
        ("t.csv", "id,text,sentence\na,b,c\n", "more than one column for text"),
        ("t.xlsx", "x", "must be one of .tsv, .csv, .jsonl"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_clear_line(tmp_path, audio, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        prepare(path, "--language", "en")
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("t.jsonl", b'{"id": "a", "text": "one"}\n{"id": "b", "text": \n', ":2:"),
        ("t.jsonl", b'{"id": "a", "text": "one"}\n["b", "two"]\n', ":2:"),
        ("t.jsonl", b'{"id": "a", "text": "one"}\n{"id": "b", "text": ["two"]}\n', ":2:"),
        ("t.jsonl", b'{"id": "a", "text": "one"}\n{"id": "b", "text": "\\ud800"}\n', ":2:"),
        ("t.tsv", b"id\ttext\na\tone\nb\ttwo\tthree\n", ":3:"),
        ("t.tsv", b"a\tone\nb two\n", ":2:"),
        ("t.tsv", b"id\ttext\nb\tz\xe9ro\na\tone\n", ":2:"),
        ("t.csv", b"id,text\nb,z\xe9ro\na,one\n", ":2:"),
        ("t.csv", b'id,text\na,one\nb,"two\nand more\nto the end\n', ":3-5:"),
    ],
)
def test_a_broken_line_is_quarantined_with_its_place_or_stops_a_strict_run(tmp_path, audio, name, content, where):
    path = tmp_path / name
    path.write_bytes(content)
    assert list(prepare(path, "--language", "en")) == ["a"]
    (reason,) = quarantine(path).values()
    assert reason.startswith("broken line: ")
    assert f"{name}{where}" in reason
    with pytest.raises(UserError, match=f"{name}{where}"):
        prepare(path, "--language", "en", "--strict")


@pytest.mark.parametrize("column", ["start", "end"])
@pytest.mark.parametrize("seconds", ["inf", "-Infinity", "1e400", "1e307", "nan", "soon"])
def test_times_that_are_no_number_of_seconds_are_quarantined(tmp_path, audio, column, seconds):
    rows = [{"id": "a", "text": "one", column: ""}, {"id": "b", "text": "two", column: seconds}]
    path = write_rows(tmp_path / "t.csv", rows)
    assert list(prepare(path, "--language", "en")) == ["a"]
    assert quarantine(path) == {"b": f"broken line: {column} '{seconds}' is not a number of seconds"}


def test_recordings_in_a_folder_that_is_not_utf_8_are_quarantined(tmp_path, audio):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    shutil.copytree(audio, folder / "audio")
    rows = [{"id": "kept", "path": audio / "a.wav", "text": "one"}, {"id": "a", "path": "a.wav", "text": "two"}]
    path = write_rows(folder / "t.csv", rows)
    table.main(["--table", str(path), "--language", "en", "--jobs", "1", "--output", str(tmp_path / "out")])
    assert [cut.id for cut in CutSet.from_file(tmp_path / "out" / "train.jsonl.gz")] == ["kept"]
    (line,) = (tmp_path / "out" / "quarantine.tsv").read_text().splitlines()[1:]
    _, name, where, reason, _ = line.split("\t")
    assert (name, where) == ("a", f"{tmp_path}/caf\\udce9/audio/a.wav")
    assert reason == "path not UTF-8: rename the file or its folder, a manifest cannot name it"


def test_an_output_folder_that_is_not_utf_8_is_refused(tmp_path, audio, capsys):
    path = write_rows(tmp_path / "t.csv", [{"id": "a", "text": "one"}])
    with pytest.raises(SystemExit):
        table.main(["--table", str(path), "--output", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")])
    assert "--output: its name is not UTF-8" in capsys.readouterr().err


def test_every_bad_recording_or_row_has_a_line_in_the_quarantine(tmp_path, audio):
    rng = np.random.default_rng(0)
    soundfile.write(audio / "whole.wav", rng.normal(size=16000) * 0.1, 16000)
    (audio / "truncated.wav").write_bytes((audio / "whole.wav").read_bytes()[:9000])
    (audio / "empty.wav").touch()
    (audio / "textfile.wav").write_text("no sound " * 100)
    soundfile.write(audio / "zero.wav", np.zeros(0), 16000)
    soundfile.write(audio / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(audio / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    write_tone(audio / "long.wav", seconds=6)
    expected = {
        "truncated": "truncated",
        "empty": "empty",
        "textfile": "unreadable",
        "zero": "empty",
        "silent": "silent",
        "nan": "NaN samples",
        "long": "too long",
        "nowhere": "missing",
    }
    rows = [{"id": name, "text": "word", "language": "en"} for name in expected]
    rows += [
        {"id": "a", "text": "one", "language": "en"},
        {"id": "a", "text": "another", "language": "en"},
        {"id": "b", "text": "nuqneH", "language": "tlh"},
        {"id": "c", "text": " ?! ", "language": "en"},
        {"id": "deep/d", "text": "word", "language": ""},
        {"id": "", "text": "word", "language": "en"},
        {"id": "whole", "text": "word " * 20, "language": "en"},
    ]
    path = write_rows(tmp_path / "t.csv", rows)
    assert list(prepare(path, "--max-seconds", "5")) == ["a"]
    reasons = quarantine(path)
    expected |= {
        "a": "duplicate id",
        "b": "unknown language: 'tlh' is none of de, en, es, fr, it, nl, pl, pt",
        "c": "no transcript",
        "deep/d": "no language",
        "": "no id",
        "whole": "transcript too long",
    }
    assert reasons.keys() == expected.keys()
    for name, kind in expected.items():
        assert reasons[name].startswith(kind), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--language", "tlh"], "unknown language 'tlh': the known ones are de, en"),
        (["--audio", "no/such/folder"], "audio folder no/such/folder does not exist"),
        (["--dev-fraction", "20"], "--dev-fraction 20.0 is not between 0 and 1"),
    ],
)
def test_bad_arguments_are_one_clear_line(tmp_path, audio, arguments, message):
    with pytest.raises(UserError, match=message):
        prepare(write_rows(tmp_path / "t.csv", ROWS), *arguments)


def test_a_folder_without_tables_says_what_it_expected(tmp_path, audio):
    with pytest.raises(UserError, match=r"holds no table: expected train, dev or test"):
        prepare(audio)


def test_the_program_prints_one_line_and_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "data_prep.table", "--table", "gone.tsv", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: table gone.tsv does not exist"
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_line_and_leaves_no_half_written_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(size=(32000, 2)) * 0.1, 16000)
    (tmp_path / "t.tsv").write_text("a\tword\n")
    command = [sys.executable, "-m", "data_prep.table", "--table", "t.tsv", "--language", "en", "--jobs", "1"]
    done = subprocess.run(
        [*command, "--output", "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(table.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


# ---------------------------------------------------------------- nothing is lost unnoticed


def test_recordings_that_differ_in_their_suffix_are_two(tmp_path):
    write_tone(tmp_path / "audio" / "a.wav", frequency=300)
    write_tone(tmp_path / "audio" / "a.flac", frequency=600)
    cuts = prepare(
        write_rows(tmp_path / "t.csv", [{"path": "a.wav", "text": "x"}, {"path": "a.flac", "text": "y"}]),
        "--language",
        "en",
    )
    assert {name: Path(cut["cut"].recording.sources[0].source).name for name, cut in cuts.items()} == {
        "a": "a.wav",
        "a.flac": "a.flac",
    }
    assert not quarantine(tmp_path / "t.csv")


def test_semicolons_separate_as_commas_do(tmp_path, audio):
    (tmp_path / "t.csv").write_text('id;text;language\na;"one; two, three";en\nb;four, five;en\n')
    cuts = prepare(tmp_path / "t.csv")
    assert {name: cut["supervision"].text for name, cut in cuts.items()} == {"a": "one two three", "b": "four five"}


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_utf_16_is_named(tmp_path, audio, suffix):
    (tmp_path / f"t{suffix}").write_text("id\ttext\na\tone\n", encoding="utf-16")
    with pytest.raises(UserError, match="written in UTF-16: save it as UTF-8"):
        prepare(tmp_path / f"t{suffix}", "--language", "en")


def test_strict_stops_at_missing_audio(tmp_path, audio):
    path = write_rows(tmp_path / "t.csv", [{"id": "a", "text": "one"}, {"id": "gone", "text": "two"}])
    assert list(prepare(path, "--language", "en")) == ["a"]
    with pytest.raises(Refused, match="gone: missing: no such audio file"):
        prepare(path, "--language", "en", "--strict")


def test_a_language_that_train_lacks_is_told(tmp_path, audio, capsys):
    rows = [
        {"id": "a", "text": "one", "language": "en", "split": "train"},
        {"id": "b", "text": "eins", "language": "de", "split": "dev"},
    ]
    prepare(write_rows(tmp_path / "t.csv", rows))
    assert "no training utterance, though dev or test has some: de" in capsys.readouterr().out


def test_channels_that_cancel_are_named(tmp_path):
    (tmp_path / "audio").mkdir()
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / "audio" / "a.wav", np.stack([tone, -tone], 1), 16000)
    soundfile.write(tmp_path / "audio" / "b.wav", np.stack([tone, 0 * tone], 1), 16000)
    path = write_rows(tmp_path / "t.csv", [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}])
    assert list(prepare(path, "--language", "en")) == ["b"]
    assert quarantine(path)["a"].startswith("channels cancel")


def test_what_has_no_dev_split_says_so_with_the_option_that_makes_one(tmp_path, audio, capsys):
    path = write_rows(tmp_path / "t.csv", [{"id": name, "text": "one"} for name in "abc"])
    prepare(path, "--language", "en")
    assert "has no dev split, and training needs one to validate on: give --dev-fraction" in capsys.readouterr().out
    rows = [{"id": "a", "text": "one", "split": "train"}, {"id": "b", "text": "two", "split": "dev"}]
    prepare(write_rows(path, rows), "--language", "en")
    assert "no dev split" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("splits", "arguments", "told"),
    [
        (["", ""], [], True),
        (["train", "test"], [], True),
        (["train", "dev"], [], False),
        (["train", "Validation"], [], False),
        (["train", ""], ["--dev-fraction", "0.05"], False),
        (["train", "train"], ["--dev-fraction", "0.05"], True),
        (["train", ""], ["--split", "dev"], False),
        (["test", "test"], [], False),
    ],
)
def test_a_table_without_rows_of_dev_is_told_before_a_recording_is_opened(
    tmp_path, audio, capsys, monkeypatch, splits, arguments, told
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "prepare", stop)
    rows = [{"id": name, "text": "one", "split": split} for name, split in zip("ab", splits, strict=True)]
    with pytest.raises(KeyboardInterrupt):
        prepare(write_rows(tmp_path / "t.csv", rows), "--language", "en", *arguments)
    line = "no row is of dev, and training needs some to validate on: give --dev-fraction"
    assert (line in capsys.readouterr().out) == told


@pytest.mark.parametrize(("names", "told"), [(("train", "test"), True), (("train", "dev"), False), (("test",), False)])
def test_a_folder_of_tables_without_one_of_dev_is_told_too(tmp_path, names, told):
    for name in names:
        write_rows(tmp_path / f"{name}.tsv", [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}])
    sources = table.find_sources(tmp_path, tmp_path)
    assert table.will_lack_dev(sources, split="train", dev_fraction=0.05) == told
