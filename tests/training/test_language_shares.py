"""What has been heard of each language is logged, and a resumed run goes on counting where it stood."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.optim.schedules import OneCycle
from speechllm_pl.training.callbacks import LanguageShares
from speechllm_pl.training.ctc_pretraining import CtcPretraining


def heard(corpus: Path, tokenizer: CtcTokenizer, folder: Path, steps: int, resumed: Path | None = None) -> dict:
    """Return the metrics of a run of so many steps, eight of which are an epoch."""
    encoder = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64, dropout=0.0)
    module = CtcPretraining(
        tokenizer, encoder=encoder, optimizer=partial(torch.optim.AdamW, lr=1e-3), schedule=OneCycle()
    )
    module.configure_model()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        limit_val_batches=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1,
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LanguageShares(), ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
    )
    trainer.fit(module, SpeechDataModule(str(corpus), max_duration=1.0), ckpt_path=resumed)
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("data/")}


@pytest.mark.filterwarnings("ignore")
def test_epochs_and_hours_of_languages_are_logged_and_resumed(
    corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    whole = heard(corpus, ctc_tokenizer, tmp_path / "whole", 12)
    cuts = SpeechDataModule(str(corpus)).cuts("train")
    assert whole["data/epochs/de"] + whole["data/epochs/en"] == pytest.approx(3)  # 1.5 each, if it fell so
    after_one = heard(corpus, ctc_tokenizer, tmp_path / "one", 8)
    for language in ("de", "en"):
        own = [cut for cut in cuts if cut.supervisions[0].language == language]
        assert after_one[f"data/epochs/{language}"] == 1
        assert after_one[f"data/hours/{language}"] == pytest.approx(sum(cut.duration for cut in own) / 3600)
    for stopped in (3, 8, 10):
        checkpoint = tmp_path / "whole" / f"step={stopped}.ckpt"
        assert heard(corpus, ctc_tokenizer, tmp_path / f"{stopped}", 12, checkpoint) == pytest.approx(whole)
    assert "data/epochs/de" in next((tmp_path / "whole").rglob("metrics.csv")).read_text()
    share = after_one["data/hours/en"] / (after_one["data/hours/en"] + after_one["data/hours/de"])
    assert any(row.split() == ["en", "0.00", f"{share:.1%}", "1.000"] for row in caplog.text.splitlines())
