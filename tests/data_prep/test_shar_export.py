"""Export to Lhotse Shar: stock Lhotse reads it; it survives kills; tasks make together what one makes alone."""

import contextlib
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import deleted_while_mapped, write_cut
from lhotse import CutSet

from data_prep.machinery.command_line import Refused
from data_prep.shar import __main__ as program_module
from data_prep.shar import encoding
from data_prep.shar.encoding import encode
from data_prep.shar.export import Settings, export
from data_prep.shar.verification import finish, finish_once
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import shar_index as shar

FLAC = Settings("flac", 3)


def speechlike(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return 0.2 * np.convolve(noise, np.hanning(20) / 10, "same")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten cuts: three and a third shards."""
    folder = tmp_path_factory.mktemp("corpus")
    cuts = [
        write_cut(folder, f"ü/{n}.x", speechlike(0.5 + 0.1 * n, n), f"größe {n}", ("en", "de")[n % 2])
        if n != 4
        else write_cut(folder, "other", speechlike(0.9, n, 22_050), "größe 4", "en", rate=22_050)
        for n in range(10)
        if (folder / "ü").mkdir(exist_ok=True) is None
    ]
    CutSet.from_cuts(cuts).to_file(folder / "train.jsonl.gz")
    return folder / "train.jsonl.gz"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines_of(manifest: Path) -> list[bytes]:
    with gzip.open(manifest) as file:
        return file.readlines()


def broken(manifest: Path, folder: Path) -> Path:
    """The manifest with cuts in it that cannot be used."""
    lines = lines_of(manifest)
    cut = json.loads(lines[1])
    gone = {**cut, "id": "gone", "recording": {**cut["recording"], "sources": [{**cut["recording"]["sources"][0]}]}}
    gone["recording"]["sources"][0]["source"] = "nowhere.wav"
    awkward = [b"{no json\n", json.dumps(gone).encode() + b"\n", json.dumps({**cut, "id": "a//b"}).encode() + b"\n"]
    (folder / "broken.jsonl").write_bytes(b"".join([*lines[:2], *awkward, *lines[2:]]))
    return folder / "broken.jsonl"


# what is written


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize(("rate", "said"), [(16_000, 8_000), (8_000, 16_000), (22_050, 24_000)])
def test_a_rate_that_is_not_the_files_is_quarantined(tmp_path: Path, rate: int, said: int, resampled: bool) -> None:
    cut = write_cut(tmp_path, "false", speechlike(1.0, rate=rate), "one", "en", rate=rate)
    cut.recording.sampling_rate = said
    cut.recording.duration = cut.duration = rate / said
    cut = cut.resample(16_000) if resampled else cut
    right = write_cut(tmp_path, "right", speechlike(1.0, rate=rate), "one", "en", rate=rate).resample(16_000)
    CutSet.from_cuts([cut, right]).to_file(tmp_path / "train.jsonl")
    export(tmp_path / "train.jsonl", tmp_path / "out", FLAC)
    assert [cut.id for cut in CutSet.from_shar(in_dir=tmp_path / "out")] == ["right"]
    (line,) = (tmp_path / "out" / shar.QUARANTINE).read_text().splitlines()[1:]
    name, reason = line.split("\t")
    path = tmp_path / "false.wav"
    assert name == "false"
    assert reason == f"false sampling rate: {path} has {rate} Hz, but its manifest says {said} Hz: prepare it again"


@pytest.mark.parametrize("codec", ["flac", "opus"])
def test_stock_lhotse_reads_what_was_exported(tmp_path: Path, manifest: Path, codec: str) -> None:
    export(manifest, tmp_path / "out", Settings(codec, 3))
    found = list(CutSet.from_shar(in_dir=tmp_path / "out"))
    expected = list(CutSet.from_file(manifest))
    assert [cut.id for cut in found] == [cut.id for cut in expected]
    for ours, original in zip(found, expected, strict=True):
        (supervision,), (was,) = ours.supervisions, original.supervisions
        assert (supervision.text, supervision.language, supervision.speaker) == (was.text, was.language, was.speaker)
        samples, wanted = ours.load_audio()[0], original.resample(16_000).load_audio()[0]
        assert ours.sampling_rate == 16_000
        assert len(samples) == len(wanted) == ours.num_samples
        error = np.square(samples - wanted).sum() / np.square(wanted).sum()
        assert error < (1e-7 if codec == "flac" else 0.05)


def test_records_say_where_the_audio_is(tmp_path: Path, manifest: Path) -> None:
    export(manifest, tmp_path, FLAC)
    (entry,) = np.load(tmp_path / shar.INDEX / "000003.npy")
    with tarfile.open(tmp_path / shar.audio_name(3)) as tar:
        member = tar.getmembers()[0]
    assert (member.offset_data, member.size) == (entry["place"]["audio_start"], entry["place"]["audio_bytes"])
    record = json.loads((tmp_path / shar.INDEX / "000003.json").read_text())
    assert (record["cuts"], record["languages"], record["characters"]) == (1, ["de"], "".join(sorted(set("größe 9"))))
    content = (tmp_path / shar.audio_name(3)).read_bytes()
    assert record["files"][shar.audio_name(3)] == [len(content), hashlib.sha256(content).hexdigest()]
    assert entry["duration"] == np.float32(1.4)


@pytest.mark.parametrize("codec", ["flac", "opus"])
def test_the_same_samples_give_the_same_bytes(codec: str) -> None:
    samples = speechlike(1.3)
    assert encode(samples, codec) == encode(samples, codec)


def test_an_opus_stream_with_its_new_serial_number_is_the_same_sound() -> None:
    file = io.BytesIO()
    soundfile.write(file, speechlike(3.0), 16_000, format="OGG", subtype="OPUS")
    changed = encoding._with_serial(file.getvalue(), 77)
    assert changed != file.getvalue()
    sound, rate = soundfile.read(io.BytesIO(changed))
    np.testing.assert_array_equal(sound, soundfile.read(io.BytesIO(file.getvalue()))[0])
    assert rate == 16_000


def test_oggs_checksum_is_what_libogg_writes() -> None:
    """libogg drops pages whose checksum is wrong, but ours are compared directly too."""
    file = io.BytesIO()
    soundfile.write(file, speechlike(3.0), 16_000, format="OGG", subtype="OPUS")
    serial = int.from_bytes(file.getvalue()[14:18], "little")
    assert encoding._with_serial(file.getvalue(), serial) == file.getvalue()


def test_samples_beyond_full_scale_are_not_clipped() -> None:
    loud = 4 * speechlike(0.5) / np.abs(speechlike(0.5)).max()
    found, _ = soundfile.read(io.BytesIO(encode(loud, "flac")))
    np.testing.assert_allclose(found * 4, loud, atol=4e-4)


@pytest.mark.parametrize("codec", ["flac", "opus"])
def test_a_recording_in_the_codec_is_taken_as_it_is(tmp_path: Path, codec: str) -> None:
    file_format, subtype = encoding.CODECS[codec]
    cut = write_cut(tmp_path, "a", speechlike(1.0), "one", "en")
    path = tmp_path / f"a.{codec}"
    soundfile.write(path, speechlike(1.0), 16_000, format=file_format, subtype=subtype)
    cut.recording = cut.recording.from_file(path, recording_id="a")
    CutSet.from_cuts([cut]).to_file(tmp_path / "a.jsonl")
    export(tmp_path / "a.jsonl", tmp_path / "out", Settings(codec, 3))
    with tarfile.open(tmp_path / "out" / shar.audio_name(0)) as tar:
        assert tar.extractfile(f"a.{codec}").read() == path.read_bytes()


# tasks, processes, kills


def test_two_tasks_write_what_one_writes(tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture) -> None:
    export(manifest, tmp_path / "one", FLAC)
    export(manifest, tmp_path / "two", FLAC, task=1, tasks=2)
    assert "2 shards of other tasks are still to come" in capsys.readouterr().out
    assert not (tmp_path / "two" / shar.INDEX / "joined").exists()
    export(manifest, tmp_path / "two", FLAC, task=0, tasks=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_tasks_that_finish_together_verify_and_join_one_after_the_other(tmp_path: Path, manifest: Path) -> None:
    export(manifest, tmp_path, FLAC)
    whole = contents(tmp_path)
    shutil.rmtree(tmp_path / shar.INDEX / "joined")
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    tasks = [context.Process(target=finish_and_say, args=(tmp_path, said)) for _ in range(4)]
    with shar.locked(tmp_path):
        for task in tasks:
            task.start()
    printed = sorted(said.get().split(str(tmp_path))[1].split(",")[0].strip(": ") for _ in tasks)
    for task in tasks:
        task.join()
    assert [text.split()[0] for text in printed] == ["is", "is", "is", "verified"]
    assert contents(tmp_path) == whole


def finish_and_say(folder: Path, said: SimpleQueue) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            finish_once(folder, jobs=1)
        except BaseException as error:
            print(f"{folder}: failed: {error!r}")
    said.put(out.getvalue())


def test_two_processes_write_what_one_writes(tmp_path: Path, manifest: Path) -> None:
    export(manifest, tmp_path / "one", FLAC)
    export(manifest, tmp_path / "two", FLAC, jobs=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize("where", ["write_record", "write_whole", "withdraw"])
def test_a_killed_export_goes_on_and_comes_to_the_same_bytes(
    tmp_path: Path, manifest: Path, where: str, capsys: pytest.CaptureFixture
) -> None:
    export(manifest, tmp_path / "whole", FLAC)

    def killed_in_the_second_shard() -> None:
        calls, original = [], getattr(shar, where)

        def die(*arguments, **named):
            calls.append(1)
            if (tmp_path / "out" / shar.INDEX / "000000.json").exists():
                os._exit(9)
            return original(*arguments, **named)

        setattr(shar, where, die)
        export(manifest, tmp_path / "out", FLAC)

    process = multiprocessing.get_context("fork").Process(target=killed_in_the_second_shard)
    process.start()
    process.join()
    assert process.exitcode == 9
    first = tmp_path / "out" / shar.audio_name(0)
    written = first.stat().st_mtime_ns
    capsys.readouterr()
    export(manifest, tmp_path / "out", FLAC)
    assert "1 of this task's 4 shards are complete and left alone" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == written
    found = contents(tmp_path / "out")
    assert {name: found[name] for name in contents(tmp_path / "whole")} == contents(tmp_path / "whole")
    stray = set(found) - set(contents(tmp_path / "whole"))
    assert all(Path(name).parent.name == shar.INDEX for name in stray)  # what the kill left is where Lhotse reads none
    assert len(list(CutSet.from_shar(in_dir=tmp_path / "out"))) == 10


def test_shards_are_made_again_when_their_input_or_the_settings_have_changed(
    tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture
) -> None:
    export(manifest, tmp_path / "out", FLAC)
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"".join(lines_of(manifest)[:5]))
    export(other, tmp_path / "out", FLAC)
    assert "1 of this task's 2 shards are complete and left alone" in capsys.readouterr().out
    export(other, tmp_path / "new", FLAC)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")
    export(other, tmp_path / "out", Settings("opus", 3))
    assert "left alone" not in capsys.readouterr().out
    assert len(list(CutSet.from_shar(in_dir=tmp_path / "out"))) == 5


def test_a_second_run_has_nothing_to_do(tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture) -> None:
    export(manifest, tmp_path / "out", FLAC)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    capsys.readouterr()
    export(manifest, tmp_path / "out", FLAC)
    assert "is complete; it was verified" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_verifying_again_leaves_alone_what_readers_have_mapped(tmp_path: Path, manifest: Path) -> None:
    export(manifest, tmp_path / "out", FLAC)
    joined = shar.read_joined(tmp_path / "out")
    finish(tmp_path / "out", jobs=1)
    assert len(joined.durations) == 10
    assert not deleted_while_mapped(tmp_path)
    assert not list((tmp_path / "out" / shar.INDEX).glob(".*joined*"))


def test_slurm_says_which_task_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_module._tasks(None, None) == (0, 1)
    assert program_module._tasks(2, 5) == (2, 5)
    for name, value in {"ID": "3", "MIN": "1", "COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert program_module._tasks(None, None) == (2, 4)
    assert program_module._tasks(0, 2) == (0, 2)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "9")  # of --array=1,9: gaps
    with pytest.raises(UserError, match="task 8 of 4"):
        program_module._tasks(None, None)
    with pytest.raises(UserError, match="together"):
        program_module._tasks(1, None)


# what cannot be used


def test_what_cannot_be_read_is_quarantined_with_its_reason(tmp_path: Path, manifest: Path) -> None:
    path = broken(manifest, tmp_path)
    export(path, tmp_path / "out", FLAC)
    header, *rows = (tmp_path / "out" / shar.QUARANTINE).read_text().splitlines()
    assert header == "id\treason"
    reasons = dict(row.split("\t") for row in rows)
    assert list(reasons) == ["? ({no json)", "gone", "a//b"]
    assert "nowhere.wav" in reasons["gone"]
    assert reasons["a//b"] == "id that a tar cannot have as a name"
    assert len(list(CutSet.from_shar(in_dir=tmp_path / "out"))) == 10


def test_the_quarantine_cannot_write_to_the_terminal(tmp_path: Path, manifest: Path) -> None:
    line = json.loads(lines_of(manifest)[0]) | {"id": "a\tb\x1b[2J\u2028"}
    line["recording"]["sources"][0]["source"] = str(tmp_path / "gone")
    (tmp_path / "odd.jsonl").write_bytes(b"".join(lines_of(manifest)[1:]) + f"{json.dumps(line)}\n".encode())
    export(tmp_path / "odd.jsonl", tmp_path / "out", FLAC)
    _, row, _ = (tmp_path / "out" / shar.QUARANTINE).read_text().split("\n")
    assert row.startswith("a\\tb\\x1b[2J\\u2028\t")
    assert row.count("\t") == 1


def test_strict_stops_at_the_first_that_cannot_be_read(tmp_path: Path, manifest: Path) -> None:
    with pytest.raises(Refused, match=r"--strict: cut \? .*no json"):
        export(broken(manifest, tmp_path), tmp_path / "out", FLAC, strict=True)


def test_retry_reads_again_what_was_quarantined(tmp_path: Path, manifest: Path) -> None:
    cut = write_cut(tmp_path, "late", speechlike(1.0), "one", "en")
    CutSet.from_cuts([cut]).to_file(tmp_path / "late.jsonl")
    (tmp_path / "late.wav").rename(tmp_path / "away.wav")
    (tmp_path / "both.jsonl").write_bytes(b"".join(lines_of(manifest)) + (tmp_path / "late.jsonl").read_bytes())
    export(tmp_path / "both.jsonl", tmp_path / "out", FLAC)
    assert len(shar.read_joined(tmp_path / "out").durations) == 10
    (tmp_path / "away.wav").rename(tmp_path / "late.wav")
    export(tmp_path / "both.jsonl", tmp_path / "out", FLAC)
    assert len(shar.read_joined(tmp_path / "out").durations) == 10
    export(tmp_path / "both.jsonl", tmp_path / "out", FLAC, retry=True)
    assert len(shar.read_joined(tmp_path / "out").durations) == 11
    assert (tmp_path / "out" / shar.QUARANTINE).read_text() == "id\treason\n"


def test_an_export_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"has no cut: all were quarantined, see .*cuts\.quarantine\.tsv"):
        export(tmp_path / "none.jsonl", tmp_path / "out", FLAC)


# verification


@pytest.mark.parametrize("damage", ["byte", "cut off", "missing", "record", "index", "rejections"])
def test_verification_names_what_is_broken(
    tmp_path: Path, manifest: Path, damage: str, capsys: pytest.CaptureFixture
) -> None:
    export(manifest, tmp_path, FLAC)
    path = tmp_path / shar.audio_name(1)
    content = path.read_bytes()
    if damage == "byte":
        path.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    elif damage == "cut off":
        path.write_bytes(content[:-1])
    elif damage == "missing":
        path.unlink()
    elif damage == "record":
        (tmp_path / shar.INDEX / "000001.json").unlink()
    elif damage == "rejections":
        (tmp_path / shar.INDEX / "000001.quarantine.tsv").unlink()
    else:
        (tmp_path / shar.INDEX / "000001.npy").write_bytes(b"")
    with pytest.raises(UserError, match="1 faults, named above"):
        finish(tmp_path, jobs=1)
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    expected = {
        "byte": f"{tmp_path}/recording.000001.tar has bytes that have changed since it was written",
        "cut off": f"{tmp_path}/recording.000001.tar has {len(content) - 1} bytes instead of {len(content)}",
        "missing": f"{tmp_path}/recording.000001.tar is missing",
        "record": "shard 000001 is missing",
        "index": f"{tmp_path}/{shar.INDEX}/000001.npy has 0 bytes instead of",
        "rejections": f"{tmp_path}/{shar.INDEX}/000001.quarantine.tsv is missing",
    }
    assert line.startswith(expected[damage])
    path.unlink(missing_ok=True)  # as the message says
    export(manifest, tmp_path, FLAC)
    assert len(list(CutSet.from_shar(in_dir=tmp_path))) == 10


# the program


def program(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "data_prep.shar", *map(str, arguments)]
    root = Path(program_module.__file__).parents[2]
    everything = {**os.environ, "PYTHONPATH": str(root), **environment}
    return subprocess.run(command, cwd=root, env=everything, capture_output=True, text=True, check=False)


def test_the_program_exports_as_a_task_of_an_array_and_verifies(tmp_path: Path, manifest: Path) -> None:
    for task in ("1", "2"):
        array = {f"SLURM_ARRAY_TASK_{name}": value for name, value in (("ID", task), ("MIN", "1"), ("COUNT", "2"))}
        done = program("--manifest", manifest, "--output", tmp_path, "--shard-size", 4, "--jobs", 1, **array)
        assert done.returncode == 0, done.stderr
    assert "verified 10 cuts" in done.stdout
    shutil.rmtree(tmp_path / shar.INDEX / "joined")
    assert "verified 10 cuts" in program("--verify", tmp_path, "--jobs", 1).stdout
    (tmp_path / shar.cuts_name(1)).unlink()
    done = program("--verify", tmp_path, "--jobs", 1)
    assert done.returncode == 2
    assert "cuts.000001.jsonl is missing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--manifest", "gone.jsonl.gz"], "manifest gone.jsonl.gz does not exist"),
        (["--manifest", "empty.jsonl"], "manifest empty.jsonl has no cuts"),
        ([], "give --manifest and --output, or --verify"),
        (["--verify", "nothing"], "nothing is no folder that data_prep.shar has written"),
    ],
)
def test_bad_arguments_are_one_clear_line(tmp_path: Path, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    monkeypatch.setattr(sys, "argv", ["shar", *arguments, *(["--output", "out"] if arguments else [])])
    with pytest.raises(UserError) as error:
        program_module.main()
    assert message in str(error.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, manifest: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        export(manifest, tmp_path, FLAC)


def test_what_was_cut_off_before_it_was_listed_is_quarantined(manifest: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.ogg"
    soundfile.write(path, speechlike(3.0), 16_000, format="OGG", subtype="VORBIS")
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    found = soundfile.info(path)
    cut = json.loads(lines_of(manifest)[0])
    seconds = found.frames / 16_000
    recording = {**cut["recording"], "num_samples": found.frames, "duration": seconds}
    recording["sources"] = [{"type": "file", "channels": [0], "source": str(path)}]
    supervision = {**cut["supervisions"][0], "duration": seconds}
    line = json.dumps({**cut, "recording": recording, "supervisions": [supervision], "duration": seconds})
    (tmp_path / "cut.jsonl").write_bytes(lines_of(manifest)[1] + line.encode() + b"\n")
    export(tmp_path / "cut.jsonl", tmp_path / "shar", FLAC)
    (_, rejected) = (tmp_path / "shar" / shar.QUARANTINE).read_text().splitlines()
    assert "truncated" in rejected
