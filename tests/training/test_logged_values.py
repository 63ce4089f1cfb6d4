"""Values that are logged only in the steps that write them are those that every step would have logged."""

import csv
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.optim.schedules import OneCycle
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.speed import Speed

OF_STEPS = ("train/loss", "train/ctc_loss", "train/gradient_norm")


def run(
    corpus: Path, tokenizer: CtcTokenizer, folder: Path, interval: int, accumulated: int, steps: int
) -> tuple[dict[int, list[float]], list[float]]:
    """Return the values written, by step from 1, and those that are known at the end."""
    encoder = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64, dropout=0.0)
    torch.manual_seed(0)
    module = CtcPretraining(
        tokenizer, encoder=encoder, optimizer=partial(torch.optim.AdamW, lr=1e-3), schedule=OneCycle()
    )
    module.configure_model()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        accumulate_grad_batches=accumulated,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=interval,
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Speed()],
    )
    trainer.fit(module, SpeechDataModule(str(corpus), max_duration=1.0))
    assert trainer.callback_metrics["speed/audio_seconds_per_second"] > 0
    with next(folder.rglob("metrics.csv")).open() as file:
        rows = {int(row["step"]) + 1: [float(row[name]) for name in OF_STEPS] for row in csv.DictReader(file)}
    return rows, [float(trainer.callback_metrics[name]) for name in OF_STEPS]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("steps", [6, 7])
def test_fewer_values_are_written_and_they_are_the_same(
    corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path, accumulated: int, steps: int
) -> None:
    """Eight batches are an epoch, so the last step is at the end of none."""
    every, last = run(corpus, ctc_tokenizer, tmp_path / "every", 1, accumulated, steps)
    third, known = run(corpus, ctc_tokenizer, tmp_path / "third", 3, accumulated, steps)
    assert list(every) == list(range(1, steps + 1))
    assert third == {step: every[step] for step in (3, 6)}
    assert known == last
