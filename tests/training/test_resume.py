"""A run that was stopped after any step goes on as if it had not been."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from lhotse import CutSet
from lightning.pytorch.callbacks import ModelCheckpoint

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.tokenizer import CtcTokenizer
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.conformer import ConformerConfig
from speechllm_pl.training.checkpoints import AtomicCheckpointIO
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.optimizers import MuonAdamW
from speechllm_pl.training.schedules import OneCycle

ENCODER = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64, dropout=0.0)
STEPS = 12


class Diary(L.Callback):
    """Which utterances each step saw, and its loss."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[str], float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        self.steps.append((batch.ids, outputs["loss"].item()))


def run(
    corpus: Path, tokenizer: CtcTokenizer, folder: Path, resumed: Path | None = None, kind: Any = MuonAdamW
) -> list:
    L.seed_everything(0, verbose=False)
    optimizer = partial(kind, lr=1e-3)
    module = CtcPretraining(tokenizer, ENCODER, optimizer=optimizer, schedule=OneCycle())
    module.configure_model()
    module.model.augment = torch.nn.Identity()  # type: ignore[assignment]  # draws at random
    diary = Diary()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=STEPS,
        limit_val_batches=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[diary, ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
        default_root_dir=folder,
    )
    data = SpeechDataModule(str(corpus), dev="train.jsonl.gz", max_duration=2.5, num_buckets=2)
    trainer.fit(module, data, ckpt_path=resumed)
    return diary.steps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [MuonAdamW, torch.optim.AdamW, AdamW8bit])
def test_a_resumed_run_sees_the_same_batches_and_losses(
    corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path, kind: Any
) -> None:
    whole = run(corpus, ctc_tokenizer, tmp_path / "whole", kind=kind)
    assert len(whole) == STEPS
    for stopped in (1, 4, 5, 6, 9):  # in the midst of epochs, and at their ends
        resumed = run(corpus, ctc_tokenizer, tmp_path / f"{stopped}", tmp_path / "whole" / f"step={stopped}.ckpt", kind)
        assert [ids for ids, _ in resumed] == [ids for ids, _ in whole[stopped:]]
        assert [loss for _, loss in resumed] == pytest.approx([loss for _, loss in whole[stopped:]], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_another_optimiser_cannot_take_over(corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path) -> None:
    run(corpus, ctc_tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"trained with MuonAdamW on 2 groups.* AdamW .*\(RUN=\)"):
        run(corpus, ctc_tokenizer, tmp_path / "other", tmp_path / "step=1.ckpt", torch.optim.AdamW)


@pytest.mark.filterwarnings("ignore")
def test_characters_that_the_tokenizer_cannot_write_are_told(
    corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cuts = CutSet.from_file(corpus / "train.jsonl.gz").to_eager()
    for cut in cuts:
        cut.supervisions[0].text += " жж"
    cuts.to_file(tmp_path / "train.jsonl.gz")
    caplog.set_level("INFO")
    run(tmp_path, ctc_tokenizer, tmp_path / "run")
    assert "cannot write 1 characters of the training transcripts" in caplog.text
    assert "<unk>: ж;" in caplog.text
