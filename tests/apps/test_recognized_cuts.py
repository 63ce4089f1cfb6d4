"""What evaluating and transcribing share: no audio is kept, device and precision are as meant, ranks change nothing."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import speak
from lightning import Trainer
from listener import Listener
from untrained import save

from speechllm_pl.apps import recognized_cuts
from speechllm_pl.apps.devices import device_of
from speechllm_pl.apps.recognized_cuts import Recognized, recognize
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.checkpoints import RECORD
from speechllm_pl.training.ctc_pretraining import CtcPretraining


def heard(corpus: Path, listener: Any = None, **options: Any) -> Recognized:
    """The eight training utterances in batches of one or two."""
    cuts = read_cuts(corpus / "train.jsonl.gz")
    return recognize(listener or Listener(), cuts, max_duration=2.2, **options)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_waveforms_are_let_go_when_they_have_been_transcribed(corpus: Path, num_workers: int) -> None:
    listener = Listener()
    recognized = heard(corpus, listener, num_workers=num_workers)
    assert len(listener.alive) >= 5
    assert max(listener.alive) <= 2  # this one, and the one before until the next has come
    said = [f"{len(speak(text))} samples" for text in recognized.texts]
    assert said == [found.text for found in recognized.hypotheses("ctc")]
    assert len(recognized.ids) == 8


def test_processes_that_read_ahead_change_nothing(corpus: Path) -> None:
    assert heard(corpus, num_workers=2).batches == heard(corpus).batches


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_recognize_together_what_one_recognizes_in_the_same_order(corpus: Path, world_size: int) -> None:
    alone = heard(corpus)
    parts = [heard(corpus, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = Recognized.of_ranks(parts)
    assert [batch for batch in together.batches if batch.ids] == alone.batches
    assert together.ids == alone.ids
    assert together.audio_seconds == pytest.approx(alone.audio_seconds)
    assert together.seconds == sum(part.seconds for part in parts)
    assert max(len(part.ids) for part in parts) < 8


@pytest.mark.parametrize(
    ("trained", "asked", "dtype"),
    [
        ("32-true", None, torch.float32),
        ("bf16-mixed", None, torch.bfloat16),
        ("bf16-mixed", "32-true", torch.float32),
        ("32-true", "bf16-mixed", torch.bfloat16),
        ("32-true", "16-mixed", torch.float16),
    ],
)
def test_precision_is_that_of_training_unless_another_is_asked_for(corpus: Path, trained, asked, dtype) -> None:
    listener = Listener(precision=trained)
    heard(corpus, listener, precision=asked)
    assert set(listener.dtypes) == {dtype}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_checkpoint_names_the_precision_of_its_training(
    ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, tmp_path: Path, precision: Any
) -> None:
    module = CtcPretraining(ctc_tokenizer, encoder=small_encoder)
    module.trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    assert Recognizer.load(save(module, tmp_path / "new.ckpt")).precision == precision


def test_checkpoints_that_name_no_precision_are_read_as_fp32(
    ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, tmp_path: Path
) -> None:
    path = save(CtcPretraining(ctc_tokenizer, encoder=small_encoder), tmp_path / "old.ckpt")
    assert "precision" not in torch.load(path, weights_only=True)[RECORD]
    assert Recognizer.load(path).precision == "32-true"


def test_the_real_time_factor_counts_waiting_for_audio(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by a second whenever it is asked: once before, twice a batch, once after."""
    ticks = iter(np.arange(1000.0))
    monkeypatch.setattr("speechllm_pl.apps.recognized_cuts.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    recognized = heard(corpus)
    batches = len(recognized.batches)
    assert recognized.seconds == 2 * batches + 1
    assert recognized.waiting_seconds == batches
    assert recognized.real_time_factor == recognized.seconds / recognized.audio_seconds


def test_rtfx_counts_neither_reading_nor_the_warm_up(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by 9 s for a batch that is read, and by 1 s, the first time 30 s, for one recognised."""
    now, readings = [0.0], _batches_read_slowly(monkeypatch)
    listener = Listener(before=lambda batch: now.__setitem__(0, now[0] + (1 if batch else 30)))
    clock = SimpleNamespace(perf_counter=lambda: now[0] + 9 * len(readings))
    monkeypatch.setattr("speechllm_pl.apps.recognized_cuts.time", clock)
    recognized = heard(corpus, listener, warm_up=True)
    batches = len(recognized.batches)
    assert listener.batches[0] == listener.batches[1]
    assert len(listener.batches) == batches + 1
    assert recognized.rtfx == pytest.approx(recognized.audio_seconds / batches)
    assert recognized.waiting_seconds == 9 * batches
    assert recognized.seconds == 10 * batches


def _batches_read_slowly(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each batch that is read."""
    read, readings = recognized_cuts._batches, []

    def noted(*arguments: Any) -> Iterator[Batch]:
        for batch in read(*arguments):
            readings.append(len(batch.ids))
            yield batch

    monkeypatch.setattr(recognized_cuts, "_batches", noted)
    return readings


def test_utterances_share_the_time_of_their_batch_by_duration(corpus: Path) -> None:
    recognized = heard(corpus)
    for batch in recognized.batches:
        assert sum(batch.times) == pytest.approx(batch.seconds)
        assert batch.durations == [len(speak(text)) / 16_000 for text in batch.texts]
        assert [time / batch.times[0] for time in batch.times] == pytest.approx(
            [duration / batch.durations[0] for duration in batch.durations]
        )
    assert max(len(batch.ids) for batch in recognized.batches) == 2


@pytest.mark.parametrize(("there_is_one", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, there_is_one: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    assert device_of("auto") == expected
    assert device_of("cuda:1") == "cuda:1"
    assert device_of("cpu") == "cpu"
