"""The index that a large manifest keeps: made once, by one process, and mended."""

import errno
import fcntl
import json
import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from conftest import deleted_while_mapped
from test_manifest import repeated, written

from speechllm_pl.core.errors import UserError
from speechllm_pl.data import manifest_index as index_module
from speechllm_pl.data.manifest import read_manifest


@pytest.mark.usefixtures("kept_beside")
@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
class TestIndex:
    def test_a_full_disk_is_named_as_such(
        self, tmp_path: Path, train_lines, name, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(index_module, "index_lines", full)
        with pytest.raises(UserError, match=f"no room for the index of manifest .*{name} beside it"):
            read_manifest(written(tmp_path, train_lines, name))

    def test_it_is_made_once(
        self, tmp_path: Path, train_lines, train_cuts, name, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = written(tmp_path, train_lines, name)
        first = read_manifest(path)

        def refuse(*_) -> None:
            raise AssertionError("indexed again")

        monkeypatch.setattr(index_module, "index_lines", refuse)
        second = read_manifest(path)
        assert list(second) == list(first) == train_cuts
        assert second.characters == first.characters
        for known in ("durations", "languages", "language_codes"):
            np.testing.assert_array_equal(getattr(second, known), getattr(first, known))
        assert sorted(item.name for item in tmp_path.iterdir()) == [name, f"{name}.index"]

    def test_it_tells_how_much_there_is(self, tmp_path: Path, train_lines, train_cuts, name) -> None:
        path = written(tmp_path, repeated(train_lines, 1000), name)
        read_manifest(path)
        (folder,) = path.with_name(f"{name}.index").glob("[!.]*")
        record = json.loads((folder / "index.json").read_text())
        assert record["cuts"] == 8000
        assert record["hours"] == pytest.approx(1000 * sum(cut.duration for cut in train_cuts) / 3600, abs=0.05)

    def test_it_is_made_anew_when_the_manifest_has_changed(
        self, tmp_path: Path, train_lines, train_cuts, name, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert len(read_manifest(written(tmp_path, train_lines, name))) == 8
        assert not caplog.text
        path = written(tmp_path, [train_lines[4], *train_lines[6:]], name)
        assert list(read_manifest(path)) == [train_cuts[4], *train_cuts[6:]]
        assert f"{path} is not what its index was made of" in caplog.text

    @pytest.mark.parametrize("part", ["index.json", "starts.npy", "durations.npy", "languages.npy"])
    @pytest.mark.parametrize("damage", ["missing", "cut off", "empty"])
    def test_it_is_made_anew_when_it_is_damaged(
        self, tmp_path: Path, train_lines, train_cuts, name, part: str, damage: str
    ) -> None:
        path = written(tmp_path, train_lines, name)
        first = read_manifest(path).index_folder
        assert first is not None
        broken = first / part
        content = broken.read_bytes()
        broken.unlink()
        if damage != "missing":
            broken.write_bytes(content[: len(content) - 9] if damage == "cut off" else b"")
        cuts = read_manifest(path)
        assert list(cuts) == train_cuts
        assert cuts.index_folder is not None
        assert (cuts.index_folder / part).read_bytes() == content
        assert read_manifest(path).index_folder == cuts.index_folder != first

    def test_what_a_killed_process_left_is_in_nobodys_way(self, tmp_path: Path, train_lines, train_cuts, name) -> None:
        path = written(tmp_path, train_lines, name)

        def killed(*_) -> None:
            os._exit(9)

        def interrupted() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(index_module.np, "save", killed)
                read_manifest(path)

        process = multiprocessing.get_context("fork").Process(target=interrupted)
        process.start()
        process.join()
        assert process.exitcode == 9
        beside = path.with_name(f"{name}.index")
        assert len(list(beside.iterdir())) == 2  # its lock, and what it had begun
        cuts = read_manifest(path)
        assert list(cuts) == train_cuts
        assert set(beside.iterdir()) == {beside / ".lock", cuts.index_folder}
        assert sorted(item.name for item in tmp_path.iterdir()) == [name, f"{name}.index"]

    def test_one_of_several_processes_makes_it(self, tmp_path: Path, train_lines, name, monkeypatch) -> None:
        path = written(tmp_path, train_lines, name)
        index_lines = index_module.index_lines

        def noted(*arguments):
            with (tmp_path / "times").open("a") as file:
                file.write("once\n")
            return index_lines(*arguments)

        monkeypatch.setattr(index_module, "index_lines", noted)
        context = multiprocessing.get_context("fork")
        together = context.Barrier(4)

        def read() -> None:
            together.wait()
            os._exit(len(read_manifest(path)))

        processes = [context.Process(target=read) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [8] * 4
        assert (tmp_path / "times").read_text() == "once\n"

    def test_machines_that_index_at_once_leave_alone_what_others_have_mapped(
        self, tmp_path: Path, train_lines, train_cuts, name, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between machines no lock holds: all three index, one ends after the other, and the earlier ones read on."""
        path = written(tmp_path, train_lines, name)
        context = multiprocessing.get_context("fork")
        all_index, all_read = context.Barrier(3), context.Barrier(3)
        reads = [context.Event() for _ in range(3)]
        found = context.SimpleQueue()
        index_lines = index_module.index_lines
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)

        def machine(number: int) -> None:
            def in_turn(*arguments):
                index = index_lines(*arguments)
                all_index.wait()
                assert not number or reads[number - 1].wait(60)
                return index

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(socket, "gethostname", lambda: f"node{number}")
                patch.setattr(index_module, "index_lines", in_turn)
                cuts = read_manifest(path)
            right = list(cuts) == train_cuts
            reads[number].set()
            all_read.wait()
            found.put((right, list(cuts) == train_cuts, cuts.durations.tolist(), deleted_while_mapped(tmp_path)))

        processes = [context.Process(target=machine, args=(number,)) for number in range(3)]
        for process in processes:
            process.start()
        outcomes = [found.get() for _ in processes]
        for process in processes:
            process.join()
        durations = np.array([cut.duration for cut in train_cuts], np.float32).tolist()
        assert outcomes == [(True, True, durations, [])] * 3
        assert {item.name for item in path.with_name(f"{name}.index").glob(".*")} == {".lock"}

    def test_processes_of_a_machine_index_at_once_where_the_file_system_has_no_locks(
        self, tmp_path: Path, train_lines, train_cuts, name, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = written(tmp_path, train_lines, name)
        context = multiprocessing.get_context("fork")
        all_index = context.Barrier(3)
        index_lines = index_module.index_lines

        def no_lock(*_) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        def together(*arguments):
            all_index.wait(60)
            return index_lines(*arguments)

        monkeypatch.setattr(fcntl, "flock", no_lock)
        monkeypatch.setattr(index_module, "index_lines", together)

        def process() -> None:
            cuts = read_manifest(path)
            os._exit(0 if list(cuts) == train_cuts and cuts.index_folder else 1)

        processes = [context.Process(target=process) for _ in range(3)]
        for started in processes:
            started.start()
        for started in processes:
            started.join()
        assert [started.exitcode for started in processes] == [0] * 3
        assert len(list(path.with_name(f"{name}.index").iterdir())) == 2  # its lock and one index

    def test_a_manifest_that_is_replaced_stays_what_it_was_for_those_who_read_it(
        self, tmp_path: Path, train_lines, train_cuts, name
    ) -> None:
        path = written(tmp_path, train_lines, name)
        cuts = read_manifest(path)
        other = written(tmp_path, reversed(train_lines), f"other-{name}")
        os.replace(other, path)
        assert list(read_manifest(path)) == train_cuts[::-1]
        assert list(cuts) == train_cuts
        assert not deleted_while_mapped(tmp_path)


@pytest.mark.usefixtures("kept_beside")
def test_without_room_for_an_index_a_manifest_is_read_all_the_same(
    tmp_path: Path, train_lines, train_cuts, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, train_lines, "cuts.jsonl")
    (tmp_path / "cuts.jsonl.index").touch()  # stands for a folder that cannot be written to
    assert list(read_manifest(path)) == train_cuts
    assert f"no index can be kept beside {path}" in caplog.text
    assert not (tmp_path / "cuts.jsonl.index").is_dir()


@pytest.mark.usefixtures("kept_beside")
def test_without_room_a_large_gzipped_manifest_has_to_be_unpacked(tmp_path: Path, train_lines: list[str]) -> None:
    (tmp_path / "cuts.jsonl.gz.index").touch()
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz is large.*gunzip"):
        read_manifest(written(tmp_path, train_lines))
