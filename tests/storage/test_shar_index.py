"""Index of a Shar folder: plan, records, verification and the joined whole, of shards of any content."""

import hashlib
import os
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import shar_index as shar

PLAN = shar.ExportPlan(cuts=5, settings={"format": "flac", "cuts": 3}, inputs=["first", "second"])
LANGUAGES = (["de", "fr"], ["en", "fr"])
"""Of each shard, numbered from 0 in its rows."""


def write_shard(folder: Path, shard: int, rows: list[tuple[float, int]]) -> shar.Record:
    """A shard of cuts of some seconds in some language, whose audio and lines are of no matter."""
    entries = np.zeros(len(rows), shar.ENTRY)
    entries["duration"], entries["language"] = zip(*rows, strict=True) if rows else ((), ())
    entries["place"]["audio_start"] = np.arange(len(rows)) + 100 * shard
    files = {}
    for name, content in ((shar.cuts_name(shard), b"{}\n" * len(rows)), (shar.audio_name(shard), bytes(50))):
        (folder / name).write_bytes(content)
        files[name] = [len(content), hashlib.sha256(content).hexdigest()]
    record = shar.Record(PLAN.inputs[shard], len(rows), 1, LANGUAGES[shard], "abß"[shard:], files)
    shar.write_record(folder, shard, record, entries)
    return record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shar.write_plan(tmp_path, PLAN)
    write_shard(tmp_path, 0, [(1.0, 1), (2.0, 0), (3.0, 1)])
    write_shard(tmp_path, 1, [(4.0, 0), (5.0, 1)])
    return tmp_path


def test_a_plan_is_read_as_it_was_written_and_not_from_another_version(folder: Path, monkeypatch) -> None:
    assert shar.read_plan(folder) == PLAN
    monkeypatch.setattr(shar, "VERSION", 99)
    assert shar.read_plan(folder) is None
    with pytest.raises(UserError, match=r"no Shar folder of data_prep\.shar: .* of version 99"):
        shar.read_joined(folder)


def test_a_record_adds_the_sums_of_its_rows(folder: Path) -> None:
    read = shar.read_record(folder, 1)
    assert read is not None
    rows = (folder / shar.INDEX / "000001.npy").read_bytes()
    assert read.files[f"{shar.INDEX}/000001.npy"] == [len(rows), hashlib.sha256(rows).hexdigest()]
    assert (read.cuts, read.quarantined, read.languages, read.characters) == (2, 1, ["en", "fr"], "bß")
    assert shar.read_record(folder, 2) is None


def test_what_is_missing_or_of_another_input_is_unfinished(folder: Path) -> None:
    assert shar.unfinished(folder, PLAN) == []
    assert shar.unfinished(folder, replace(PLAN, inputs=["first", "other", "third"])) == [1, 2]


def test_shards_are_joined_with_one_numbering_of_languages(folder: Path) -> None:
    joined = shar.join(folder, PLAN.shards)
    assert joined.durations.tolist() == [1, 2, 3, 4, 5]
    assert [joined.language_codes[number] for number in joined.languages] == ["fr", "de", "fr", "en", "fr"]
    assert joined.places["audio_start"].tolist() == [0, 1, 2, 100, 101]
    assert joined.shard_starts.tolist() == [0, 3, 5]
    assert joined.characters == "abß"
    assert not joined.durations.flags.writeable  # a map of the file, which processes share
    assert [path.name for path in (folder / shar.INDEX).iterdir() if path.name.startswith(".")] == []


def test_an_equal_index_stays_for_those_who_read_it_and_another_one_replaces_it(folder: Path) -> None:
    shar.join(folder, PLAN.shards)
    file = folder / shar.INDEX / "joined" / "durations.npy"
    first = os.stat(file).st_ino
    shar.join(folder, PLAN.shards)
    assert os.stat(file).st_ino == first
    write_shard(folder, 1, [(6.0, 0)])
    assert shar.join(folder, PLAN.shards).durations.tolist() == [1, 2, 3, 6]


def test_a_shard_that_is_withdrawn_takes_the_joined_index_with_it(folder: Path) -> None:
    shar.join(folder, PLAN.shards)
    assert shar.is_joined(folder)
    shar.withdraw(folder, 1)
    assert not shar.is_joined(folder)
    with pytest.raises(UserError, match=r"is incomplete, 1 of 2 shards \(000001\) missing"):
        shar.read_joined(folder)


def test_an_index_that_was_not_joined_says_what_to_run(folder: Path) -> None:
    with pytest.raises(UserError, match=r"has not been verified: run data_prep\.shar --verify"):
        shar.read_joined(folder)


def test_files_that_are_gone_are_named_when_the_folder_is_opened(folder: Path) -> None:
    shar.join(folder, PLAN.shards)
    (folder / shar.audio_name(1)).unlink()
    with pytest.raises(UserError, match=r"recording\.000001\.tar missing: copy the folder again"):
        shar.read_joined(folder)


def test_a_folder_in_which_all_was_quarantined_has_no_cut(tmp_path: Path) -> None:
    shar.write_plan(tmp_path, replace(PLAN, inputs=["first"]))
    write_shard(tmp_path, 0, [])
    with pytest.raises(UserError, match="all were quarantined"):
        shar.join(tmp_path, 1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (shar.audio_name(1), b"x" * 50, "has bytes that have changed"),
        (shar.audio_name(1), b"x", "has 1 bytes instead of 50"),
        (shar.cuts_name(1), None, "is missing"),
        (f"{shar.INDEX}/000001.npy", b"", "has 0 bytes instead of"),
    ],
)
def test_every_byte_of_a_shard_is_verified(folder: Path, name: str, content: bytes | None, said: str) -> None:
    assert shar.faults(folder, 1, "second") == []
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    (fault,) = shar.faults(folder, 1, "second")
    assert fault.startswith(f"{folder / name} {said}")
    assert shar.faults(folder, 0, "first") == []


def test_wrong_counts_and_inputs_are_faults(folder: Path) -> None:
    assert shar.faults(folder, 1, "other") == ["shard 000001 was made from another input"]
    assert shar.faults(folder, 7, "other") == ["shard 000007 is missing"]
    record = write_shard(folder, 1, [(4.0, 0), (5.0, 1)])
    shar.write_record(folder, 1, replace(record, cuts=3), np.zeros(2, shar.ENTRY))
    assert shar.faults(folder, 1, "second") == ["shard 000001 has 2 cuts and 2 index rows, but its record says 3"]


def _is_free(folder: Path) -> bool:
    import fcntl

    with (folder / shar.INDEX / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_one_process_at_a_time_has_the_lock(folder: Path) -> None:
    with get_context("spawn").Pool(1) as others:
        with shar.locked(folder):
            assert not others.apply(_is_free, (folder,))
        assert others.apply(_is_free, (folder,))
    with shar.locked(folder / "no index"):  # nothing to lock
        pass
