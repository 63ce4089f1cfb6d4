"""Shar folders as sequences of cuts, compared with stock Lhotse."""

import json
import logging
import os
import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from conftest import SPLITS, WORDS, speak, write_cut
from lhotse import CutSet

from data_prep.shar.export import Settings, export
from speechllm_pl.core.errors import UserError
from speechllm_pl.data import shar_cuts as module
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches, PlannedBatch
from speechllm_pl.data.loader import loader
from speechllm_pl.data.manifest import durations_of
from speechllm_pl.data.shar_cuts import SharCuts
from speechllm_pl.storage import shar_index as folders


@pytest.fixture(scope="module", params=["flac", "opus"])
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Eight cuts in three shards."""
    output = tmp_path_factory.mktemp("shar") / "train"
    export(corpus / "train.jsonl.gz", output, Settings(request.param, 3))
    return output


@pytest.fixture
def own(corpus: Path, tmp_path: Path) -> Path:
    """A folder that a test may damage."""
    export(corpus / "train.jsonl.gz", tmp_path / "train", Settings("flac", 3))
    return tmp_path / "train"


@pytest.fixture(scope="module")
def stock(folder: Path) -> list:
    return list(CutSet.from_shar(in_dir=folder))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# what is read


def test_cuts_are_those_of_stock_lhotse(folder: Path, stock: list) -> None:
    cuts = SharCuts(folder)
    assert len(cuts) == len(stock) == 8
    for ours, theirs in zip(cuts, stock, strict=True):
        assert (ours.id, ours.supervisions, ours.duration) == (theirs.id, theirs.supervisions, theirs.duration)
        assert ours.recording.sources == theirs.recording.sources  # with the encoded audio in them
        np.testing.assert_array_equal(ours.load_audio(), theirs.load_audio())


def test_a_planner_finds_what_it_needs_without_opening_shards(folder: Path, stock: list, monkeypatch) -> None:
    monkeypatch.setattr(module, "_Shard", None)
    cuts = SharCuts(folder)
    texts = SPLITS["train"]
    assert cuts.durations.dtype == np.float32
    np.testing.assert_array_equal(cuts.durations, [np.float32(cut.duration) for cut in stock])
    np.testing.assert_array_equal(durations_of(cuts), cuts.durations)
    assert cuts.languages.dtype == np.uint8
    assert cuts.language_codes == ("de", "en")
    assert [cuts.language_codes[number] for number in cuts.languages] == ["en", "de"] * 4
    assert cuts.characters == "".join(sorted(set("".join(texts))))
    assert cuts.shard_starts.tolist() == [0, 3, 6, 8]


def test_texts_come_in_order(folder: Path) -> None:
    assert list(SharCuts(folder).texts()) == list(SPLITS["train"])
    assert list(SharCuts(folder).select(np.array([7, 2])).texts()) == [SPLITS["train"][7], SPLITS["train"][2]]


def test_cuts_are_found_by_position_and_selections_of_selections_too(folder: Path, stock: list) -> None:
    cuts = SharCuts(folder)
    ids = [cut.id for cut in stock]
    assert [cuts[7].id, cuts[0].id, cuts[-2].id] == [ids[7], ids[0], ids[6]]
    chosen = cuts[1:].select(np.array([0, 3, 6]))
    assert [cut.id for cut in chosen] == [ids[1], ids[4], ids[7]]
    np.testing.assert_array_equal(chosen.languages, cuts.languages[[1, 4, 7]])
    assert chosen.shard_starts.tolist() == [0, 1, 2, 3]
    for beyond in (8, -9):
        with pytest.raises(IndexError):
            cuts[beyond]


def test_few_shards_are_open_at_once(folder: Path, stock: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    cuts = SharCuts(folder)
    before = len(os.listdir("/proc/self/fd"))
    for position in (0, 3, 6, 1, 7, 4, 0, 5):
        assert cuts[position].id == stock[position].id
        assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_a_shard_that_was_closed_meanwhile_is_still_read_ahead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, what: asked.append((start, length)))
    monkeypatch.setattr(module, "MOST_OPEN", 1)
    cuts = SharCuts(folder)
    for position in (0, 3, 1, 4):
        cuts[position]
    assert len(asked) == 4 - 2  # not before it is known that reading goes forward


@pytest.mark.parametrize("order", [range(8), range(7, -1, -1), (0, 7, 1, 6, 2)])
def test_what_follows_is_asked_for_when_reading_goes_forward(folder: Path, order, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, what: asked.append((start, length)))
    monkeypatch.setattr(module, "AHEAD", 2**20)
    cuts = SharCuts(folder)
    for position in order:
        cuts[position]
    if order == range(8):
        assert len(asked) == 3  # once a shard: each is smaller than what is asked for
    elif order == range(7, -1, -1):
        assert not asked


def test_workers_read_what_one_process_reads(folder: Path) -> None:
    cuts = SharCuts(folder)
    cuts[0]  # a file is open already when workers start
    plan = list(EpochBatches(Buckets(cuts.durations, 3.0, 2))) * 10
    alone = [SpeechDataset(cuts)[planned] for planned in plan]
    for ours, expected in zip(loader(SpeechDataset(cuts), plan, 2), alone, strict=True):
        assert ours.ids == expected.ids
        assert ours.waveforms.equal(expected.waveforms)


def test_cuts_can_be_sent_to_another_process(folder: Path, stock: list) -> None:
    cuts = SharCuts(folder)
    cuts[0]
    sent = pickle.dumps(cuts[1:])
    assert len(sent) < 2000
    assert [cut.id for cut in pickle.loads(sent)] == [cut.id for cut in stock[1:]]


def test_training_reads_a_folder_or_a_manifest_through_the_same_setting(folder: Path, corpus: Path) -> None:
    plain = SpeechDataModule(str(corpus), max_duration=4.0)
    packed = SpeechDataModule(str(folder.parent), train="train", max_duration=4.0)
    lossless = next(folder.glob("*.tar")).read_bytes().find(b"fLaC") >= 0
    (ours, expected) = (_utterances(data.train_dataloader()) for data in (packed, plain))
    assert len(ours) == len(SPLITS["train"])
    assert sorted(ours) == sorted(expected)  # in another order: that of the disk
    for id_, (text, samples) in ours.items():
        assert text == expected[id_][0]
        np.testing.assert_allclose(samples, expected[id_][1], atol=1e-4 if lossless else 0.5)


def _utterances(batches: Iterable[Batch]) -> dict[str, tuple[str, np.ndarray]]:
    return {
        id_: (text, waveform[:length].numpy())
        for batch in batches
        for id_, text, waveform, length in zip(batch.ids, batch.texts, batch.waveforms, batch.lengths, strict=True)
    }


def test_lanes_that_processes_cannot_share_evenly_are_told_of(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"data\.lanes 3 is no multiple of the 2 processes.* 1, or --data\.lanes 4"):
        SpeechDataModule(str(folder.parent), train="train", lanes=3, num_workers=2).cuts("train")
    with pytest.warns(UserWarning, match=r"the 7 processes.*: give --data\.num_workers 4, or --data\.lanes 70"):
        SpeechDataModule(str(folder.parent), train="train", lanes=64, num_workers=7).cuts("train")


def test_utterances_that_are_too_long_are_left_out(folder: Path, caplog) -> None:
    data = SpeechDataModule(str(folder.parent), train="train", max_seconds=1.2)
    assert [len(text.split()) <= 3 for text in SPLITS["train"]].count(True) == len(data.cuts("train"))


# what is refused


def test_a_changed_byte_of_audio_is_a_skipped_recording_that_is_named(own: Path, caplog) -> None:
    (place,) = np.load(own / folders.INDEX / "000001.npy")["place"][1:2]
    flip(own / folders.audio_name(1), int(place["audio_start"]) + int(place["audio_bytes"]) // 2)
    cuts = SharCuts(own)
    with pytest.raises(UserError, match=r"recording\.000001\.tar: cut 1 \(train-4\) is not what was written"):
        cuts[4]
    with caplog.at_level(logging.WARNING):
        batch = SpeechDataset(cuts)[PlannedBatch(np.array([3, 4, 5]), 0)]
    assert batch.ids == ["train-3", "train-5"]
    assert len(batch.skipped) == 1
    assert "recording.000001.tar" in caplog.text


def test_a_changed_letter_of_a_transcript_is_found(own: Path) -> None:
    path = own / folders.cuts_name(0)
    flip(path, path.read_bytes().index(b"one two three"))
    with pytest.raises(UserError, match=r"recording\.000000\.tar: cut 0 \(train-0\)"):
        SharCuts(own)[0]


def test_a_tar_that_was_cut_off_is_found(own: Path) -> None:
    path = own / folders.audio_name(2)
    os.truncate(path, 3000)
    cuts = SharCuts(own)
    with pytest.raises(UserError, match=r"recording\.000002\.tar: cut 1 \(train-7\)"):
        cuts[7]


def test_missing_shards_are_named_when_the_folder_is_opened(own: Path) -> None:
    (own / folders.audio_name(1)).unlink()
    (own / folders.cuts_name(2)).unlink()
    with pytest.raises(UserError, match=r"cuts\.000002\.jsonl, recording\.000001\.tar missing") as error:
        SharCuts(own)
    assert "\n" not in str(error.value)


def test_an_unfinished_export_is_refused_with_what_is_missing(corpus: Path, tmp_path: Path) -> None:
    export(corpus / "train.jsonl.gz", tmp_path / "train", Settings("flac", 3), task=1, tasks=2)
    with pytest.raises(UserError, match=r"incomplete, 2 of 3 shards \(000000, 000002\) missing"):
        read_cuts(tmp_path / "train")


def test_a_folder_that_was_not_verified_is_refused(own: Path) -> None:
    folders.withdraw(own, 1)
    with pytest.raises(UserError, match=r"incomplete, 1 of 3 shards \(000001\) missing"):
        read_cuts(own)


def test_any_other_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no Shar folder"):
        read_cuts(tmp_path)


def test_a_damaged_index_is_named(own: Path) -> None:
    path = own / folders.INDEX / "joined" / "durations.npy"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"durations\.npy cannot be read.*--verify"):
        SharCuts(own)


# the joined index


def test_languages_are_numbered_over_all_shards(tmp_path: Path) -> None:
    """Though each shard numbers its own."""
    languages = ["pl", "de", "de", "en", "pl"]
    cuts = [write_cut(tmp_path, f"u{n}", speak(WORDS[n]), WORDS[n], code) for n, code in enumerate(languages)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "all.jsonl")
    export(tmp_path / "all.jsonl", tmp_path / "out", Settings("flac", 1))
    found = SharCuts(tmp_path / "out")
    assert [found.language_codes[number] for number in found.languages] == languages
    facts = json.loads((tmp_path / "out" / folders.INDEX / "joined" / "joined.json").read_text())
    assert facts["cuts"] == 5
