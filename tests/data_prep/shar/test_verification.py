"""Verification: it names what is broken, and disturbs no reader."""

import contextlib
import io
import multiprocessing
import shutil
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest
from conftest import deleted_while_mapped
from lhotse import CutSet
from shar_folders import FLAC, contents

from data_prep.shar.export import export
from data_prep.shar.verification import finish, finish_once
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import shar_index as shar


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


def test_verifying_again_leaves_alone_what_readers_have_mapped(tmp_path: Path, manifest: Path) -> None:
    export(manifest, tmp_path / "out", FLAC)
    joined = shar.read_joined(tmp_path / "out")
    finish(tmp_path / "out", jobs=1)
    assert len(joined.durations) == 10
    assert not deleted_while_mapped(tmp_path)
    assert not list((tmp_path / "out" / shar.INDEX).glob(".*joined*"))


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


def finish_and_say(folder: Path, said: SimpleQueue) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            finish_once(folder, jobs=1)
        except BaseException as error:
            print(f"{folder}: failed: {error!r}")
    said.put(out.getvalue())
