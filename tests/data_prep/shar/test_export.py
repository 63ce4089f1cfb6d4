"""Export to Lhotse Shar: stock Lhotse reads it; it survives kills; tasks make together what one makes alone."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import speechlike, write_cut
from lhotse import CutSet
from shar_folders import FLAC, broken, contents, lines_of

from data_prep.machinery.command_line import Refused
from data_prep.shar.export import Settings, export
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import shar_index as shar


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


def test_two_tasks_write_what_one_writes(tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture) -> None:
    export(manifest, tmp_path / "one", FLAC)
    export(manifest, tmp_path / "two", FLAC, task=1, tasks=2)
    assert "2 shards of other tasks are still to come" in capsys.readouterr().out
    assert not (tmp_path / "two" / shar.INDEX / "joined").exists()
    export(manifest, tmp_path / "two", FLAC, task=0, tasks=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


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
