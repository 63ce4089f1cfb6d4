"""Manifests: what is read, and what is refused with which words."""

import gzip
import json
import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from conftest import SPLITS
from lhotse import CutSet
from torch.utils.data import DataLoader

from speechllm_pl.core.errors import UserError
from speechllm_pl.data import manifest as module
from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches
from speechllm_pl.data.manifest import durations_of, read_manifest
from speechllm_pl.data.mixture import TrainingCuts


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
def test_a_manifest_is_read_in_its_order(tmp_path: Path, train_lines: list[str], train_cuts: list, name: str) -> None:
    cuts = read_manifest(written(tmp_path, train_lines, name))
    assert list(cuts) == train_cuts
    assert [cut.supervisions[0].text for cut in cuts] == list(SPLITS["train"])
    np.testing.assert_allclose(cuts.durations, [cut.duration for cut in train_cuts], rtol=1e-6)
    assert cuts.characters == "".join(sorted(set("".join(SPLITS["train"]))))
    assert list(cuts.texts()) == list(SPLITS["train"])
    assert cuts.language_codes == ("de", "en")  # of which "en" is met first
    assert [cuts.language_codes[number] for number in cuts.languages] == ["en", "de"] * 4
    assert cuts.languages.dtype == np.uint8


@pytest.mark.usefixtures("any_size")
def test_cuts_are_found_by_position_and_selections_of_selections_too(tmp_path: Path, train_lines, train_cuts) -> None:
    cuts = read_manifest(written(tmp_path, train_lines))
    assert [cuts[7], cuts[0], cuts[-2]] == [train_cuts[7], train_cuts[0], train_cuts[6]]
    assert list(cuts[2:5]) == train_cuts[2:5]
    assert list(cuts[1:].select(np.array([6, 0, 3]))[::2]) == [train_cuts[7], train_cuts[4]]
    np.testing.assert_array_equal(cuts[2:5].durations, cuts.durations[2:5])
    np.testing.assert_array_equal(cuts[2:5].languages, cuts.languages[2:5])
    assert list(cuts[5:1:-2].texts()) == [cut.supervisions[0].text for cut in (train_cuts[5], train_cuts[3])]
    for beyond in (8, -9):
        with pytest.raises(IndexError):
            cuts[beyond]


def test_durations_of_any_sequence_are_those_of_a_manifest(
    tmp_path: Path, train_lines: list[str], train_cuts: list
) -> None:
    np.testing.assert_array_equal(durations_of(train_cuts), durations_of(read_manifest(written(tmp_path, train_lines))))


@pytest.mark.usefixtures("any_size")
def test_a_mixed_cut_and_other_letters_are_read_too(tmp_path: Path, train_lines: list[str], train_cuts: list) -> None:
    """A MixedCut has neither duration nor supervisions at its top level."""
    mixed = train_cuts[3].pad(duration=5.0)
    other = json.loads(train_lines[0]) | {"id": "other"}
    other["supervisions"][0]["text"] = "čtyři 😀"
    path = tmp_path / "cuts.jsonl"
    CutSet.from_cuts([train_cuts[0], mixed]).to_file(path)
    path.write_text(path.read_text() + json.dumps(other, ensure_ascii=False))  # and no end of line
    cuts = read_manifest(path)
    assert cuts[1] == mixed
    assert cuts.durations.tolist() == [np.float32(cut.duration) for cut in (train_cuts[0], mixed, train_cuts[0])]
    assert cuts[2].supervisions[0].text == "čtyři 😀"
    assert set("čř😀") < set(cuts.characters)
    assert list(cuts.texts()) == [cut.supervisions[0].text for cut in cuts]


@pytest.mark.usefixtures("any_size")
def test_a_cut_that_names_no_language_has_an_undetermined_one(tmp_path: Path, train_lines: list[str]) -> None:
    for field, empty in (("language", None), ("text", None)):
        cut = json.loads(train_lines[3])
        cut["supervisions"][0][field] = empty
        train_lines[3] = json.dumps(cut)
    cuts = read_manifest(written(tmp_path, train_lines))
    assert cuts.language_codes == ("de", "en", "und")
    assert cuts.languages.tolist() == [1, 0, 1, 2, 1, 0, 1, 0]
    assert list(cuts.texts())[3] == ""


def test_more_languages_than_there_is_room_for_are_refused(tmp_path: Path, train_lines: list[str]) -> None:
    def spoken_in(language: str) -> str:
        cut = json.loads(train_lines[0]) | {"id": language}
        cut["supervisions"][0]["language"] = language
        return json.dumps(cut)

    most = [spoken_in(f"x{number}") for number in range(256)]
    assert len(read_manifest(written(tmp_path, most)).language_codes) == 256
    with pytest.raises(UserError, match=r"line 257: 'one more' is the 257th language"):
        read_manifest(written(tmp_path, [*most, spoken_in("one more")]))


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_two_workers_read_what_one_process_reads(tmp_path: Path, train_lines: list[str], name: str) -> None:
    """Forked workers share the open file: were its position used, they would read each other's train_lines."""
    many = [changed(train_lines[n % 8], id=f"{n}") for n in range(200)]
    cuts = read_manifest(written(tmp_path, many, name))
    plan = EpochBatches(Buckets(cuts.durations, 8.0, 2))
    alone, together = (
        [batch.ids for batch in DataLoader(SpeechDataset(cuts), sampler=plan, batch_size=None, num_workers=workers)]
        for workers in (0, 2)
    )
    assert together == alone
    assert sorted(id_ for ids in alone for id_ in ids) == sorted(f"{n}" for n in range(200))


@pytest.mark.usefixtures("any_size")
def test_a_manifest_can_be_sent_to_another_process(tmp_path: Path, train_lines: list[str], train_cuts: list) -> None:
    cuts = read_manifest(written(tmp_path, train_lines, "cuts.jsonl"))
    assert list(pickle.loads(pickle.dumps(cuts[1:]))) == train_cuts[1:]


@pytest.mark.usefixtures("kept_beside")
def test_what_workers_are_sent_does_not_grow_with_the_cuts(tmp_path: Path, train_lines: list[str]) -> None:
    """A worker maps the index anew."""
    sizes = []
    for times in (1, 100):
        cuts = TrainingCuts(
            {"": read_manifest(written(tmp_path, repeated(train_lines, times), f"{times}.jsonl"))}, max_seconds=1.5
        )
        assert 0 < cuts.left_out < len(cuts.sources[""])
        received = pickle.loads(pickle.dumps(cuts.sources))[""]
        assert [received[row] for row in (0, len(received) - 1)] == [cuts.sources[""][row] for row in (0, -1)]
        sizes.append(len(pickle.dumps(cuts)) - sum(rows.nbytes for rows in cuts._kept_before))
    assert sizes[1] < sizes[0] + 20


@pytest.mark.usefixtures("kept_beside")
def test_what_has_changed_since_is_not_mistaken_for_what_was_sent(tmp_path: Path, train_lines: list[str]) -> None:
    path = written(tmp_path, train_lines, "cuts.jsonl")
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
    def test_a_broken_line_is_named_by_its_number(self, tmp_path: Path, train_lines: list[str], broken: str) -> None:
        path = written(tmp_path, [*train_lines[:2], broken, *train_lines[2:]])
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz, line 3"):
            read_manifest(path)

    @pytest.mark.parametrize("missing", ["id", "start", "channel", "duration", "recording.sources", "supervisions.id"])
    def test_a_line_that_lacks_one_field_is_named(self, tmp_path: Path, train_lines: list[str], missing: str) -> None:
        """Also after train_lines that lack none, by which the fields are known."""
        cut = json.loads(train_lines[5])
        *outer, field = missing.split(".")
        inside = cut if not outer else cut[outer[0]][0] if outer[0] == "supervisions" else cut[outer[0]]
        del inside[field]
        path = written(tmp_path, [*train_lines[:5], json.dumps(cut), *train_lines[6:]])
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz, line 6: not a Lhotse cut"):
            read_manifest(path)

    def test_an_empty_manifest_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz has no cuts"):
            read_manifest(written(tmp_path, []))

    @pytest.mark.parametrize("seconds", [0, 0.0, -1.0])
    def test_a_cut_of_no_seconds_is_named(self, tmp_path: Path, train_lines: list[str], seconds: float) -> None:
        path = written(tmp_path, [train_lines[0], changed(train_lines[1], duration=seconds)])
        with pytest.raises(UserError, match=r"line 2.*train-1.*0 seconds"):
            read_manifest(path)

    @pytest.mark.parametrize("seconds", ["three", None, float("nan"), float("inf")])
    def test_a_duration_that_is_no_number_is_named(self, tmp_path: Path, train_lines: list[str], seconds) -> None:
        path = written(tmp_path, [train_lines[0], changed(train_lines[1], duration=seconds)])
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz, line 2: "):
            read_manifest(path)

    @pytest.mark.parametrize("count", [0, 2])
    def test_a_cut_needs_exactly_one_supervision(self, tmp_path: Path, train_lines: list[str], count: int) -> None:
        supervision = json.loads(train_lines[0])["supervisions"][0]
        path = written(tmp_path, [changed(train_lines[0], supervisions=[supervision] * count)])
        with pytest.raises(UserError, match=r"line 1.*train-0.*exactly one supervision"):
            read_manifest(path)

    def test_a_file_that_is_not_gzip_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "cuts.jsonl.gz"
        path.write_text("plain text\n")
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz cannot be read"):
            read_manifest(path)

    @pytest.mark.parametrize("damage", ["cut off", "overwritten in the middle"])
    def test_a_damaged_gzip_file_is_refused(self, tmp_path: Path, train_lines: list[str], damage: str) -> None:
        path = written(tmp_path, train_lines)
        whole = path.read_bytes()
        middle = len(whole) // 2
        overwritten = whole[:middle] + b"\xff" * 60 + whole[middle + 60 :]
        path.write_bytes(whole[:middle] if damage == "cut off" else overwritten)
        with pytest.raises(UserError, match=r"cuts\.jsonl\.gz"):
            read_manifest(path)

    def test_what_was_refused_can_be_mended(self, tmp_path: Path, train_lines: list[str], train_cuts: list) -> None:
        path = written(tmp_path, [*train_lines[:2], "{", *train_lines[2:]])
        with pytest.raises(UserError, match="line 3"):
            read_manifest(path)
        assert list(read_manifest(written(tmp_path, train_lines))) == train_cuts
        assert not [item for item in tmp_path.glob("*.index/.*") if item.name != ".lock"]  # nothing half made


def test_a_line_that_changed_under_a_run_is_named(tmp_path: Path, train_lines: list[str]) -> None:
    path = written(tmp_path, train_lines, "cuts.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGE", 0)
        cuts = read_manifest(path)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match=r"cuts\.jsonl, line 5: not a Lhotse cut"):
        cuts[4]
