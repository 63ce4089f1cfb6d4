"""Cuts of a corpus to batches, through the loaders."""

import multiprocessing
import subprocess
from pathlib import Path

import pytest
from conftest import SPLITS

from speechllm_pl.core.errors import UserError
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
    assert worker.exitcode == 0
