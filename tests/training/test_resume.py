"""A run that was stopped after any step goes on as if it had not been."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from bitsandbytes.optim import AdamW8bit
from lhotse import CutSet
from lightning.pytorch.callbacks import ModelCheckpoint

from data_prep.shar.export import Settings, export
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import (
    AddNoise,
    CompressMp3,
    CompressMuLaw,
    CompressOpus,
    Concatenate,
    PerturbGain,
    PerturbSpeed,
    Reverberate,
)
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.epoch_plan import EpochBatches
from speechllm_pl.data.mixture import TrainSource
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.optim.muon_adamw import MuonAdamW
from speechllm_pl.optim.schedules import OneCycle
from speechllm_pl.training.checkpoint_io import AtomicCheckpointIO
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.data_checks import DataChecks

ENCODER = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64, dropout=0.0)
STEPS = 12


class Diary(L.Callback):
    """Which utterances each step saw, and its loss; a checkpoint after every validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[tuple[list[str], float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        self.steps.append((batch.ids, outputs["loss"].item()))

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"validated={trainer.global_step}.ckpt")


class FirstOf(SpeechDataModule):
    """The data of the first of some ranks, for a trainer that knows of no others."""

    def __init__(self, world_size: int, **options: Any):
        super().__init__(**options)
        self.world_size = world_size

    def _place(self) -> tuple[int, int]:
        return 0, self.world_size


def run(
    corpus: Path,
    tokenizer: CtcTokenizer,
    folder: Path,
    resumed: Path | None = None,
    kind: Any = MuonAdamW,
    world_size: int = 1,
    max_duration: float = 2.5,
    validate: bool = False,
    **more_of_the_data: Any,
) -> list:
    L.seed_everything(0, verbose=False)
    optimizer = partial(kind, lr=1e-3)
    module = CtcPretraining(tokenizer, encoder=ENCODER, optimizer=optimizer, schedule=OneCycle())
    module.configure_model()
    module.model.augment = torch.nn.Identity()  # type: ignore[assignment]  # draws at random
    diary = Diary(folder)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=STEPS,
        limit_val_batches=1 if validate else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[diary, DataChecks(), ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
        default_root_dir=folder,
    )
    options: dict[str, Any] = {"max_duration": max_duration, "num_buckets": 2, **more_of_the_data}
    data = FirstOf(world_size, root=str(corpus), dev="train.jsonl.gz", **options)
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
def test_a_resumed_run_sees_the_same_augmented_batches_and_losses(
    corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path
) -> None:
    """All augmentations are on, in workers, and the run is resumed on other numbers of them."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((3, 8_000))
    (tmp_path / "noise").mkdir()
    for name, samples in zip("abc", noise, strict=True):
        soundfile.write(tmp_path / "noise" / f"{name}.wav", samples, 16_000)
    augmentations = [
        PerturbSpeed(),
        Reverberate(probability=0.5),
        AddNoise(folder=str(tmp_path / "noise"), probability=0.8),
        PerturbGain(),
        CompressOpus(probability=0.5),
        CompressMp3(probability=0.5),
        CompressMuLaw(probability=0.5),
        Concatenate(room=2.0, probability=0.7),
    ]
    augmented: dict[str, Any] = {"augmentations": augmentations, "max_duration": 6.0}
    whole = run(corpus, ctc_tokenizer, tmp_path / "whole", **augmented, num_workers=2)
    assert len(whole) == STEPS
    assert any("+" in id_ for ids, _ in whole for id_ in ids)
    for stopped, workers in ((1, 2), (4, 1), (7, 0)):
        checkpoint = tmp_path / "whole" / f"step={stopped}.ckpt"
        resumed = run(corpus, ctc_tokenizer, tmp_path / f"{stopped}", checkpoint, **augmented, num_workers=workers)
        assert [ids for ids, _ in resumed] == [ids for ids, _ in whole[stopped:]]
        assert [loss for _, loss in resumed] == pytest.approx([loss for _, loss in whole[stopped:]], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_run_on_a_balanced_mixture_of_a_manifest_and_shards_is_resumed_exactly(
    corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path
) -> None:
    """Utterances come more than once an epoch, each time augmented otherwise."""
    export(corpus / "train.jsonl.gz", tmp_path / "shards", Settings("flac", 3))
    mixture: dict[str, Any] = {
        "train": {"files": str(corpus / "dev.jsonl.gz"), "shards": TrainSource(str(tmp_path / "shards"), 2.0)},
        "balance": 0.3,
        "lanes": 2,
        "shuffle_buffer": 2,
        "augmentations": [PerturbSpeed(), PerturbGain()],
    }
    whole = run(corpus, ctc_tokenizer, tmp_path / "whole", **mixture, num_workers=2)
    assert len(whole) == STEPS
    heard = [id_ for ids, _ in whole for id_ in ids]
    assert len(set(heard)) < len(heard)
    for stopped, workers in ((1, 0), (5, 1), (7, 2)):
        checkpoint = tmp_path / "whole" / f"step={stopped}.ckpt"
        resumed = run(corpus, ctc_tokenizer, tmp_path / f"{stopped}", checkpoint, **mixture, num_workers=workers)
        assert [ids for ids, _ in resumed] == [ids for ids, _ in whole[stopped:]]
        assert [loss for _, loss in resumed] == pytest.approx([loss for _, loss in whole[stopped:]], rel=1e-5)


def batches_from(corpus: Path, epoch: int, done: int, world_size: int) -> list[list[str]]:
    """What the first of `world_size` ranks gets after `done` batches of an epoch, for as many steps as runs last."""
    data = SpeechDataModule(str(corpus), max_duration=1.5, num_buckets=2)
    found: list[list[str]] = []
    while len(found) < STEPS:
        plan = EpochBatches(data.buckets("train"), epoch=epoch)
        found += [[data.cuts("train")[int(i)].id for i in batch.indices] for batch in list(plan)[done::world_size]]
        epoch, done = epoch + 1, 0
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), (1, 2), (4, 1), (2, 3)])
def test_a_run_goes_on_with_just_the_batches_that_were_left_on_other_ranks(
    corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path, before: int, after: int
) -> None:
    options: dict[str, Any] = {"max_duration": 1.5, "validate": True}
    an_epoch = len(SpeechDataModule(str(corpus), max_duration=1.5, num_buckets=2).buckets("train"))
    steps_an_epoch = -(-an_epoch // before)
    run(corpus, ctc_tokenizer, tmp_path, world_size=before, **options)
    middle, last = steps_an_epoch + 1, 2 * steps_an_epoch
    for checkpoint, stopped in (
        (f"step={middle}", middle),
        (f"step={last}", last),
        (f"validated={last}", last),
        (f"step={steps_an_epoch}", steps_an_epoch),
        (f"validated={steps_an_epoch}", steps_an_epoch),
        ("step=1", 1),
    ):
        if stopped >= STEPS:
            continue
        epoch, steps = divmod(stopped, steps_an_epoch)
        resumed = run(
            corpus, ctc_tokenizer, tmp_path / checkpoint, tmp_path / f"{checkpoint}.ckpt", world_size=after, **options
        )
        expected = batches_from(corpus, epoch, steps * before, after)
        assert [ids for ids, _ in resumed] == expected[: STEPS - stopped], checkpoint


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_stopped_twice_on_changing_ranks_loses_nothing(
    corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_duration": 1.0}  # eight batches an epoch
    run(corpus, ctc_tokenizer, tmp_path / "one", world_size=2, **options)
    run(corpus, ctc_tokenizer, tmp_path / "two", tmp_path / "one/step=2.ckpt", world_size=3, **options)
    resumed = run(corpus, ctc_tokenizer, tmp_path / "three", tmp_path / "two/step=3.ckpt", **options)
    whole = run(corpus, ctc_tokenizer, tmp_path / "whole", **options)
    assert [ids for ids, _ in resumed][:5] == [ids for ids, _ in whole][7:12]  # 2 x 2 and 1 x 3 were done


@pytest.mark.filterwarnings("ignore")
def test_other_batches_begin_the_epoch_again_and_say_so(
    corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path
) -> None:
    run(corpus, ctc_tokenizer, tmp_path, max_duration=1.0)
    with pytest.warns(UserWarning, match="epoch 0 begins again"):
        resumed = run(corpus, ctc_tokenizer, tmp_path / "b", tmp_path / "step=3.ckpt", max_duration=1.5)
    whole = run(corpus, ctc_tokenizer, tmp_path / "c", max_duration=1.5)
    assert [ids for ids, _ in resumed] == [ids for ids, _ in whole][: STEPS - 3]


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
