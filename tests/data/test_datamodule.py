"""Manifests: what is read, and what is refused with which words."""

import gzip
import json
from pathlib import Path

import pytest
from conftest import SPLITS
from lhotse import CutSet

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.datamodule import SpeechDataModule, read_manifest


@pytest.fixture
def lines(corpus: Path) -> list[str]:
    """The train manifest, line by line."""
    with gzip.open(corpus / "train.jsonl.gz", "rt") as file:
        return file.read().splitlines()


def written(folder: Path, lines: list[str]) -> Path:
    path = folder / "cuts.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def changed(line: str, **fields) -> str:
    return json.dumps({**json.loads(line), **fields})


def test_a_manifest_is_read_in_its_order(corpus: Path) -> None:
    cuts = read_manifest(corpus / "train.jsonl.gz")
    assert [cut.supervisions[0].text for cut in cuts] == list(SPLITS["train"])
    assert [cut.id for cut in cuts] == [cut.id for cut in CutSet.from_file(corpus / "train.jsonl.gz")]


def test_a_plain_manifest_is_read_as_a_gzipped_one(corpus: Path, tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "cuts.jsonl").write_text("\n".join(lines) + "\n")
    assert list(read_manifest(tmp_path / "cuts.jsonl")) == list(read_manifest(corpus / "train.jsonl.gz"))


def test_a_missing_manifest_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl\.gz does not exist.*data\.root"):
        read_manifest(tmp_path / "none.jsonl.gz")


@pytest.mark.parametrize("broken", ["{not json", "", "[]", '"text"', '{"id": "x"}', '{"type": "MonoCut"}'])
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, lines: list[str], broken: str) -> None:
    path = written(tmp_path, [*lines[:2], broken, *lines[2:]])
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz, line 3"):
        read_manifest(path)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz has no cuts"):
        read_manifest(written(tmp_path, []))


@pytest.mark.parametrize("seconds", [0, 0.0, -1.0])
def test_a_cut_of_no_seconds_is_named(tmp_path: Path, lines: list[str], seconds: float) -> None:
    path = written(tmp_path, [lines[0], changed(lines[1], duration=seconds)])
    with pytest.raises(UserError, match=r"line 2.*train-1.*0 seconds"):
        read_manifest(path)


@pytest.mark.parametrize("count", [0, 2])
def test_a_cut_needs_exactly_one_supervision(tmp_path: Path, lines: list[str], count: int) -> None:
    supervision = json.loads(lines[0])["supervisions"][0]
    path = written(tmp_path, [changed(lines[0], supervisions=[supervision] * count)])
    with pytest.raises(UserError, match=r"line 1.*train-0.*exactly one supervision"):
        read_manifest(path)


def test_a_file_that_is_not_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    path.write_text("plain text\n")
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz cannot be read"):
        read_manifest(path)


@pytest.mark.parametrize("damage", ["cut off", "overwritten in the middle"])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, lines: list[str], damage: str) -> None:
    path = written(tmp_path, lines)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] if damage == "cut off" else whole[:middle] + b"\xff" * 60 + whole[middle + 60 :])
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz"):
        read_manifest(path)


def test_long_training_utterances_are_left_out_and_others_kept(corpus: Path) -> None:
    data = SpeechDataModule(str(corpus), dev="train.jsonl.gz", max_seconds=1.0)
    assert all(cut.duration <= 1.0 for cut in data.cuts("train"))
    assert 0 < len(data.cuts("train")) < 8
    assert len(data.cuts("dev")) == 8


def test_a_limit_that_leaves_nothing_is_refused(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"max_seconds = 0\.1"):
        SpeechDataModule(str(corpus), max_seconds=0.1).cuts("train")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_give_every_utterance_of_their_split_once(corpus: Path, num_workers: int) -> None:
    data = SpeechDataModule(str(corpus), max_duration=4, num_buckets=2, num_workers=num_workers)
    for split, loader in (
        ("train", data.train_dataloader()),
        ("dev", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        batches = list(loader)
        assert len(batches) == len(loader)
        texts = [text for batch in batches for text in batch.texts]
        assert sorted(texts) == sorted(SPLITS[split])
