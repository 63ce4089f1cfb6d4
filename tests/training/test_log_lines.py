"""A log file tells how far training is, with its values; a terminal, which has Lightning's bar, is left alone."""

import re
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.optim.schedules import OneCycle
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.log_lines import LogLines

pytestmark = pytest.mark.filterwarnings("ignore")


def printed(
    corpus: Path, tokenizer: CtcTokenizer, folder: Path, capsys: pytest.CaptureFixture, bar: bool = True
) -> list[str]:
    """Return lines about training of a run of five steps, of which every second one is logged."""
    encoder = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64, dropout=0.0)
    module = CtcPretraining(
        tokenizer, encoder=encoder, optimizer=partial(torch.optim.AdamW, lr=1e-3), schedule=OneCycle()
    )
    module.configure_model()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=5,
        limit_val_batches=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=2,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=bar,
        enable_model_summary=False,
        callbacks=[LogLines()],
    )
    trainer.fit(module, SpeechDataModule(str(corpus), max_duration=1.0))
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("training")]


def test_a_log_has_steps_time_left_and_values(
    corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first, *_, last = printed(corpus, ctc_tokenizer, tmp_path, capsys)
    assert re.match(r"training: +0%.* 0/5 ", first)
    assert re.match(r"training: 100%.* 5/5 \[.*, epoch \d+, loss \d", last)


def test_a_terminal_and_a_run_without_bars_have_no_lines(
    corpus: Path,
    ctc_tokenizer: CtcTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert printed(corpus, ctc_tokenizer, tmp_path, capsys, bar=False) == []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert printed(corpus, ctc_tokenizer, tmp_path, capsys) == []
