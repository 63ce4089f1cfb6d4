"""Manifests: what is read, what is refused with which words, and the index that large ones keep."""

import errno
import gzip
import json
import multiprocessing
import os
import pickle
import socket
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from conftest import SPLITS, deleted_while_mapped
from lhotse import CutSet
from torch.utils.data import DataLoader

from speechllm_pl.core.errors import UserError
from speechllm_pl.data import manifest as module
from speechllm_pl.data import manifest_index as index_module
from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches
from speechllm_pl.data.manifest import durations_of, read_manifest
from speechllm_pl.data.mixture import TrainingCuts


@pytest.fixture
def lines(corpus: Path) -> list[str]:
    """The train manifest, line by line."""
    with gzip.open(corpus / "train.jsonl.gz", "rt") as file:
        return file.read().splitlines()


@pytest.fixture
def expected(corpus: Path) -> list:
    return list(CutSet.from_file(corpus / "train.jsonl.gz"))


@pytest.fixture
def kept_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every manifest counts as large."""
    monkeypatch.setattr(module, "LARGE", 0)


@pytest.fixture(params=["small", "large"])
def any_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 0 if request.param == "large" else 2**30)


def written(folder: Path, lines: Iterable[str], name: str = "cuts.jsonl.gz") -> Path:
    path = folder / name
    with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def changed(line: str, **fields) -> str:
    return json.dumps({**json.loads(line), **fields})


def repeated(lines: list[str], times: int) -> list[str]:
    """The lines several times, each with an id of its own."""
    return [changed(line, id=f"{number}") for number, line in enumerate(lines * times)]


# what is read


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_a_manifest_is_read_in_its_order(tmp_path: Path, lines: list[str], expected: list, name: str) -> None:
    cuts = read_manifest(written(tmp_path, lines, name))
    assert list(cuts) == expected
    assert [cut.supervisions[0].text for cut in cuts] == list(SPLITS["train"])
    np.testing.assert_allclose(cuts.durations, [cut.duration for cut in expected], rtol=1e-6)
    assert cuts.characters == "".join(sorted(set("".join(SPLITS["train"]))))
    assert list(cuts.texts()) == list(SPLITS["train"])
    assert cuts.language_codes == ("de", "en")  # of which "en" is met first
    assert [cuts.language_codes[number] for number in cuts.languages] == ["en", "de"] * 4
    assert cuts.languages.dtype == np.uint8


@pytest.mark.usefixtures("any_size")
def test_cuts_are_found_by_position_and_selections_of_selections_too(tmp_path: Path, lines, expected) -> None:
    cuts = read_manifest(written(tmp_path, lines))
    assert [cuts[7], cuts[0], cuts[-2]] == [expected[7], expected[0], expected[6]]
    assert list(cuts[2:5]) == expected[2:5]
    assert list(cuts[1:].select(np.array([6, 0, 3]))[::2]) == [expected[7], expected[4]]
    np.testing.assert_array_equal(cuts[2:5].durations, cuts.durations[2:5])
    np.testing.assert_array_equal(cuts[2:5].languages, cuts.languages[2:5])
    assert list(cuts[5:1:-2].texts()) == [cut.supervisions[0].text for cut in (expected[5], expected[3])]
    for beyond in (8, -9):
        with pytest.raises(IndexError):
            cuts[beyond]


def test_durations_of_any_sequence_are_those_of_a_manifest(tmp_path: Path, lines: list[str], expected: list) -> None:
    np.testing.assert_array_equal(durations_of(expected), durations_of(read_manifest(written(tmp_path, lines))))


@pytest.mark.usefixtures("any_size")
def test_a_mixed_cut_and_other_letters_are_read_too(tmp_path: Path, lines: list[str], expected: list) -> None:
    """A MixedCut has neither duration nor supervisions at its top level."""
    mixed = expected[3].pad(duration=5.0)
    other = json.loads(lines[0]) | {"id": "other"}
    other["supervisions"][0]["text"] = "čtyři 😀"
    path = tmp_path / "cuts.jsonl"
    CutSet.from_cuts([expected[0], mixed]).to_file(path)
    path.write_text(path.read_text() + json.dumps(other, ensure_ascii=False))  # and no end of line
    cuts = read_manifest(path)
    assert cuts[1] == mixed
    assert cuts.durations.tolist() == [np.float32(cut.duration) for cut in (expected[0], mixed, expected[0])]
    assert cuts[2].supervisions[0].text == "čtyři 😀"
    assert set("čř😀") < set(cuts.characters)
    assert list(cuts.texts()) == [cut.supervisions[0].text for cut in cuts]


@pytest.mark.usefixtures("any_size")
def test_a_cut_that_names_no_language_has_an_undetermined_one(tmp_path: Path, lines: list[str]) -> None:
    for field, empty in (("language", None), ("text", None)):
        cut = json.loads(lines[3])
        cut["supervisions"][0][field] = empty
        lines[3] = json.dumps(cut)
    cuts = read_manifest(written(tmp_path, lines))
    assert cuts.language_codes == ("de", "en", "und")
    assert cuts.languages.tolist() == [1, 0, 1, 2, 1, 0, 1, 0]
    assert list(cuts.texts())[3] == ""


def test_more_languages_than_there_is_room_for_are_refused(tmp_path: Path, lines: list[str]) -> None:
    def spoken_in(language: str) -> str:
        cut = json.loads(lines[0]) | {"id": language}
        cut["supervisions"][0]["language"] = language
        return json.dumps(cut)

    most = [spoken_in(f"x{number}") for number in range(256)]
    assert len(read_manifest(written(tmp_path, most)).language_codes) == 256
    with pytest.raises(UserError, match=r"line 257: 'one more' is the 257th language"):
        read_manifest(written(tmp_path, [*most, spoken_in("one more")]))


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_two_workers_read_what_one_process_reads(tmp_path: Path, lines: list[str], name: str) -> None:
    """Forked workers share the open file: were its position used, they would read each other's lines."""
    many = [changed(lines[n % 8], id=f"{n}") for n in range(200)]
    cuts = read_manifest(written(tmp_path, many, name))
    plan = EpochBatches(Buckets(cuts.durations, 8.0, 2))
    alone, together = (
        [batch.ids for batch in DataLoader(SpeechDataset(cuts), sampler=plan, batch_size=None, num_workers=workers)]
        for workers in (0, 2)
    )
    assert together == alone
    assert sorted(id_ for ids in alone for id_ in ids) == sorted(f"{n}" for n in range(200))


@pytest.mark.usefixtures("any_size")
def test_a_manifest_can_be_sent_to_another_process(tmp_path: Path, lines: list[str], expected: list) -> None:
    cuts = read_manifest(written(tmp_path, lines, "cuts.jsonl"))
    assert list(pickle.loads(pickle.dumps(cuts[1:]))) == expected[1:]


@pytest.mark.usefixtures("kept_beside")
def test_what_workers_are_sent_does_not_grow_with_the_cuts(tmp_path: Path, lines: list[str]) -> None:
    """Where an index is kept: it is mapped anew."""
    sizes = []
    for times in (1, 100):
        cuts = TrainingCuts(
            {"": read_manifest(written(tmp_path, repeated(lines, times), f"{times}.jsonl"))}, max_seconds=1.5
        )
        assert 0 < cuts.left_out < len(cuts.sources[""])
        received = pickle.loads(pickle.dumps(cuts.sources))[""]
        assert [received[row] for row in (0, len(received) - 1)] == [cuts.sources[""][row] for row in (0, -1)]
        sizes.append(len(pickle.dumps(cuts)) - sum(rows.nbytes for rows in cuts._kept_before))
    assert sizes[1] < sizes[0] + 20


@pytest.mark.usefixtures("kept_beside")
def test_what_has_changed_since_is_not_mistaken_for_what_was_sent(tmp_path: Path, lines: list[str]) -> None:
    path = written(tmp_path, lines, "cuts.jsonl")
    sent = pickle.dumps(read_manifest(path))
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))) + "\n")
    with pytest.raises(UserError, match="has changed since it was opened"):
        pickle.loads(sent)


# what is refused


@pytest.mark.usefixtures("any_size")
class TestRefused:
    def test_a_missing_manifest_is_named_with_the_remedy(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"none\.jsonl\.gz does not exist.*data\.root"):
            read_manifest(tmp_path / "none.jsonl.gz")

    @pytest.mark.parametrize("broken", ["{not json", "", "[]", '"text"', '{"id": "x"}', '{"type": "MonoCut"}'])
    def test_a_broken_line_is_named_by_its_number(self, tmp_path: Path, lines: list[str], broken: str) -> None:
        path = written(tmp_path, [*lines[:2], broken, *lines[2:]])
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz, line 3"):
            read_manifest(path)

    @pytest.mark.parametrize("missing", ["id", "start", "channel", "duration", "recording.sources", "supervisions.id"])
    def test_a_line_that_lacks_one_field_is_named(self, tmp_path: Path, lines: list[str], missing: str) -> None:
        """Also after lines that lack none, by which the fields are known."""
        cut = json.loads(lines[5])
        *outer, field = missing.split(".")
        inside = cut if not outer else cut[outer[0]][0] if outer[0] == "supervisions" else cut[outer[0]]
        del inside[field]
        path = written(tmp_path, [*lines[:5], json.dumps(cut), *lines[6:]])
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz, line 6: not a Lhotse cut"):
            read_manifest(path)

    def test_an_empty_manifest_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz has no cuts"):
            read_manifest(written(tmp_path, []))

    @pytest.mark.parametrize("seconds", [0, 0.0, -1.0])
    def test_a_cut_of_no_seconds_is_named(self, tmp_path: Path, lines: list[str], seconds: float) -> None:
        path = written(tmp_path, [lines[0], changed(lines[1], duration=seconds)])
        with pytest.raises(UserError, match=r"line 2.*train-1.*0 seconds"):
            read_manifest(path)

    @pytest.mark.parametrize("seconds", ["three", None, float("nan"), float("inf")])
    def test_a_duration_that_is_no_number_is_named(self, tmp_path: Path, lines: list[str], seconds) -> None:
        path = written(tmp_path, [lines[0], changed(lines[1], duration=seconds)])
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz, line 2: "):
            read_manifest(path)

    @pytest.mark.parametrize("count", [0, 2])
    def test_a_cut_needs_exactly_one_supervision(self, tmp_path: Path, lines: list[str], count: int) -> None:
        supervision = json.loads(lines[0])["supervisions"][0]
        path = written(tmp_path, [changed(lines[0], supervisions=[supervision] * count)])
        with pytest.raises(UserError, match=r"line 1.*train-0.*exactly one supervision"):
            read_manifest(path)

    def test_a_file_that_is_not_gzip_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "cuts.jsonl.gz"
        path.write_text("plain text\n")
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz cannot be read"):
            read_manifest(path)

    @pytest.mark.parametrize("damage", ["cut off", "overwritten in the middle"])
    def test_a_damaged_gzip_file_is_refused(self, tmp_path: Path, lines: list[str], damage: str) -> None:
        path = written(tmp_path, lines)
        whole = path.read_bytes()
        middle = len(whole) // 2
        overwritten = whole[:middle] + b"\xff" * 60 + whole[middle + 60 :]
        path.write_bytes(whole[:middle] if damage == "cut off" else overwritten)
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz"):
            read_manifest(path)

    def test_what_was_refused_can_be_mended(self, tmp_path: Path, lines: list[str], expected: list) -> None:
        path = written(tmp_path, [*lines[:2], "{", *lines[2:]])
        with pytest.raises(UserError, match="line 3"):
            read_manifest(path)
        assert list(read_manifest(written(tmp_path, lines))) == expected
        assert not [item for item in tmp_path.glob("*.index/.*") if item.name != ".lock"]  # nothing half made


def test_a_line_that_changed_under_a_run_is_named(tmp_path: Path, lines: list[str]) -> None:
    path = written(tmp_path, lines, "cuts.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGE", 0)
        cuts = read_manifest(path)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match=r"cuts\.jsonl, line 5: not a Lhotse cut"):
        cuts[4]


# the index


@pytest.mark.usefixtures("kept_beside")
@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
class TestIndex:
    def test_a_full_disk_is_named_as_such(self, tmp_path: Path, lines, name, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(index_module, "index_lines", full)
        with pytest.raises(UserError, match=f"no room for the index of manifest .*{name} beside it"):
            read_manifest(written(tmp_path, lines, name))

    def test_it_is_made_once(self, tmp_path: Path, lines, expected, name, monkeypatch: pytest.MonkeyPatch) -> None:
        path = written(tmp_path, lines, name)
        first = read_manifest(path)

        def refuse(*_) -> None:
            raise AssertionError("indexed again")

        monkeypatch.setattr(index_module, "index_lines", refuse)
        second = read_manifest(path)
        assert list(second) == list(first) == expected
        assert second.characters == first.characters
        for known in ("durations", "languages", "language_codes"):
            np.testing.assert_array_equal(getattr(second, known), getattr(first, known))
        assert sorted(item.name for item in tmp_path.iterdir()) == [name, f"{name}.index"]

    def test_it_tells_how_much_there_is(self, tmp_path: Path, lines, expected, name) -> None:
        path = written(tmp_path, repeated(lines, 1000), name)
        read_manifest(path)
        (folder,) = path.with_name(f"{name}.index").glob("[!.]*")
        record = json.loads((folder / "index.json").read_text())
        assert record["cuts"] == 8000
        assert record["hours"] == pytest.approx(1000 * sum(cut.duration for cut in expected) / 3600, abs=0.05)

    def test_it_is_made_anew_when_the_manifest_has_changed(
        self, tmp_path: Path, lines, expected, name, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert len(read_manifest(written(tmp_path, lines, name))) == 8
        assert not caplog.text
        path = written(tmp_path, [lines[4], *lines[6:]], name)
        assert list(read_manifest(path)) == [expected[4], *expected[6:]]
        assert f"{path} is not what its index was made of" in caplog.text

    @pytest.mark.parametrize("part", ["index.json", "starts.npy", "durations.npy", "languages.npy"])
    @pytest.mark.parametrize("damage", ["missing", "cut off", "empty"])
    def test_it_is_made_anew_when_it_is_damaged(
        self, tmp_path: Path, lines, expected, name, part: str, damage: str
    ) -> None:
        path = written(tmp_path, lines, name)
        first = read_manifest(path).index_folder
        assert first is not None
        broken = first / part
        content = broken.read_bytes()
        broken.unlink()
        if damage != "missing":
            broken.write_bytes(content[: len(content) - 9] if damage == "cut off" else b"")
        cuts = read_manifest(path)
        assert list(cuts) == expected
        assert cuts.index_folder is not None
        assert (cuts.index_folder / part).read_bytes() == content
        assert read_manifest(path).index_folder == cuts.index_folder != first

    def test_what_a_killed_process_left_is_in_nobodys_way(self, tmp_path: Path, lines, expected, name) -> None:
        path = written(tmp_path, lines, name)

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
        assert list(cuts) == expected
        assert set(beside.iterdir()) == {beside / ".lock", cuts.index_folder}
        assert sorted(item.name for item in tmp_path.iterdir()) == [name, f"{name}.index"]

    def test_one_of_several_processes_makes_it(self, tmp_path: Path, lines, name, monkeypatch) -> None:
        path = written(tmp_path, lines, name)
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
        self, tmp_path: Path, lines, expected, name, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between machines no lock holds: all three index, one ends after the other, and the earlier ones read on."""
        path = written(tmp_path, lines, name)
        context = multiprocessing.get_context("fork")
        all_index, all_read = context.Barrier(3), context.Barrier(3)
        reads = [context.Event() for _ in range(3)]
        found = context.SimpleQueue()
        index_lines = index_module.index_lines
        monkeypatch.setattr(index_module.fcntl, "flock", lambda *_: None)

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
            right = list(cuts) == expected
            reads[number].set()
            all_read.wait()
            found.put((right, list(cuts) == expected, cuts.durations.tolist(), deleted_while_mapped(tmp_path)))

        processes = [context.Process(target=machine, args=(number,)) for number in range(3)]
        for process in processes:
            process.start()
        outcomes = [found.get() for _ in processes]
        for process in processes:
            process.join()
        durations = np.array([cut.duration for cut in expected], np.float32).tolist()
        assert outcomes == [(True, True, durations, [])] * 3
        assert {item.name for item in path.with_name(f"{name}.index").glob(".*")} == {".lock"}

    def test_a_manifest_that_is_replaced_stays_what_it_was_for_those_who_read_it(
        self, tmp_path: Path, lines, expected, name
    ) -> None:
        path = written(tmp_path, lines, name)
        cuts = read_manifest(path)
        other = written(tmp_path, reversed(lines), f"other-{name}")
        os.replace(other, path)
        assert list(read_manifest(path)) == expected[::-1]
        assert list(cuts) == expected
        assert not deleted_while_mapped(tmp_path)


@pytest.mark.usefixtures("kept_beside")
def test_without_room_for_an_index_a_manifest_is_read_all_the_same(
    tmp_path: Path, lines, expected, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, lines, "cuts.jsonl")
    (tmp_path / "cuts.jsonl.index").touch()  # stands for a folder that cannot be written to
    assert list(read_manifest(path)) == expected
    assert f"no index can be kept beside {path}" in caplog.text
    assert not (tmp_path / "cuts.jsonl.index").is_dir()


@pytest.mark.usefixtures("kept_beside")
def test_without_room_a_large_gzipped_manifest_has_to_be_unpacked(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "cuts.jsonl.gz.index").touch()
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz is large.*gunzip"):
        read_manifest(written(tmp_path, lines))
