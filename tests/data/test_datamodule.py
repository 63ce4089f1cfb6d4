"""Cuts of a corpus to batches, through the loaders."""

import multiprocessing
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SPLITS

from speechllm_pl.core.errors import UserError
from speechllm_pl.data import readers
from speechllm_pl.data.datamodule import SpeechDataModule


def test_long_training_utterances_are_left_out_and_others_kept(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = SpeechDataModule(str(corpus), dev="train.jsonl.gz", max_seconds=1.0)
    assert all(cut.duration <= 1.0 for cut in data.cuts("train"))
    assert 0 < len(data.cuts("train")) < 8
    assert len(data.cuts("dev")) == 8
    assert f"left out {8 - len(data.cuts('train'))} of 8 training utterances longer than 1.0 s" in caplog.text


def test_a_limit_that_leaves_nothing_is_refused(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"max_seconds = 0\.1"):
        SpeechDataModule(str(corpus), max_seconds=0.1).cuts("train")


def test_a_negative_seed_is_refused(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"data\.seed = -1"):
        SpeechDataModule(str(corpus), seed=-1)


@pytest.mark.parametrize("num_workers", [0, 2])
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


def test_batches_and_their_seeds_do_not_depend_on_workers(corpus: Path) -> None:
    alone, together = (
        [
            (batch.ids, batch.seed)
            for batch in SpeechDataModule(str(corpus), max_duration=2, num_workers=workers).train_dataloader()
        ]
        for workers in (0, 2)
    )
    assert together == alone
    assert len({seed for _, seed in alone}) == len(alone) > 2


def test_another_max_duration_groups_the_same_cuts_anew(corpus: Path) -> None:
    data = SpeechDataModule(str(corpus), max_duration=4)
    before = len(data.buckets("train"))
    data.max_duration = 1.5
    assert len(data.buckets("train")) > before
    assert len(data.train_dataloader()) == len(data.buckets("train"))


def test_validation_has_batches_of_its_own_length(corpus: Path) -> None:
    data = SpeechDataModule(str(corpus), dev="train.jsonl.gz", max_duration=2, val_max_duration=8, num_buckets=1)
    assert (
        len(data.val_dataloader())
        == len(data.buckets("dev"))
        < len(data.buckets("train"))
        == len(SpeechDataModule(str(corpus), max_duration=2, num_buckets=1).buckets("train"))
    )
    assert len(data.buckets("test")) == 1


@pytest.mark.parametrize("fn", ["fit", "validate"])
def test_ranks_share_the_sample_in_fit_and_all_of_dev_otherwise(corpus: Path, fn: str) -> None:
    ids: list[str] = []
    for rank in range(3):
        data = SpeechDataModule(str(corpus), dev="train.jsonl.gz", max_duration=1.5, val_utterances=5)
        place = {"global_rank": rank, "world_size": 3, "num_devices": 3}
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn=fn), **place)  # type: ignore[assignment]
        ids += [id_ for batch in data.val_dataloader() for id_ in batch.ids]
    sample = SpeechDataModule(str(corpus), dev="train.jsonl.gz", val_utterances=5).dev_sample
    assert sample is not None
    assert sorted(ids) == [f"train-{n}" for n in (sample if fn == "fit" else range(8))]
    assert len(sample) == 5


@pytest.mark.parametrize(("name", "workers"), [("files.jsonl.gz", 8), ("shar/train", 6)])
def test_auto_takes_readers_that_divide_the_lanes_of_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, workers: int
) -> None:
    monkeypatch.setattr(readers, "workers_of_rank", lambda ranks: 8)
    (tmp_path / "shar" / "train").mkdir(parents=True)
    assert SpeechDataModule(str(tmp_path), train=name, lanes=12, num_workers="auto").workers == workers


def test_a_sample_of_nothing_is_refused(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"data\.val_utterances = 0"):
        SpeechDataModule(str(corpus), val_utterances=0)


def test_without_a_plan_auto_is_no_more_than_training_has(corpus: Path) -> None:
    data = SpeechDataModule(str(corpus), dev="train.jsonl.gz", max_duration=2, val_max_duration="auto", num_buckets=1)
    assert len(data.buckets("dev")) == len(data.buckets("train"))


@pytest.mark.parametrize("signal", ["TERM", "INT", "USR1"])
def test_a_signal_to_the_whole_job_leaves_workers_to_their_work(corpus: Path, signal: str) -> None:
    """The training process decides when to stop, and needs batches until then."""
    data = SpeechDataModule(str(corpus), max_duration=1, num_workers=2)
    loader = iter(data.train_dataloader())
    batches = [next(loader), next(loader)]  # one of each worker, which has then begun
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    subprocess.run(["kill", f"-{signal}", *(str(worker.pid) for worker in workers)], check=True)
    batches += loader
    assert len(batches) == 8
    assert sorted(text for batch in batches for text in batch.texts) == sorted(SPLITS["train"])


def test_the_training_process_can_still_end_a_worker(corpus: Path) -> None:
    """Otherwise a program that fails would wait for its workers for ever."""
    data = SpeechDataModule(str(corpus), max_duration=1, num_workers=1)
    loader = iter(data.train_dataloader())
    next(loader)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=30)
    assert not worker.is_alive()
