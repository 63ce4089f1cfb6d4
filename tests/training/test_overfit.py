"""Both stages learn eight utterances by heart, through the real modules, data and trainer."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from speechllm_pl.apps.recognized_cuts import recognize
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.optim.schedules import OneCycle
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.training.checkpoint_io import AtomicCheckpointIO
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.stage import Stage

ENCODER = ConformerConfig(dim=64, num_blocks=2, num_heads=4, ffn_dim=128, kernel_size=5, dropout=0.0)


def train(module: Stage, corpus: Path, epochs: int, folder: Path) -> Path:
    """Trains, and returns the checkpoint that was saved at the end."""
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
    )
    data = SpeechDataModule(str(corpus), dev="train.jsonl.gz", max_duration=6.0, num_buckets=2)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/wer"] == 0
    path = folder / f"{module.stage}.ckpt"
    trainer.save_checkpoint(path)
    return path


def transcripts_are_exact(checkpoint: Path, corpus: Path) -> None:
    """Every system of a checkpoint, read back from disk, transcribes the training utterances without an error."""
    module = Recognizer.load(checkpoint)
    cuts = SpeechDataModule(str(corpus)).cuts("train")
    recognized = recognize(module, cuts, max_duration=4.0)
    for system in module.systems(DecodingOptions()):
        texts = [hypothesis.text for hypothesis in recognized.hypotheses(system)]
        expected = recognized.texts
        assert texts == expected
        assert not any(hypothesis.truncated for hypothesis in recognized.hypotheses(system))


@pytest.fixture(scope="module")
def ctc_checkpoint(corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = CtcPretraining(
        ctc_tokenizer, encoder=ENCODER, optimizer=partial(torch.optim.AdamW, lr=3e-3), schedule=OneCycle()
    )
    return train(module, corpus, epochs=60, folder=tmp_path_factory.mktemp("ctc"))


def test_stage_one_memorises_eight_utterances(ctc_checkpoint: Path, corpus: Path) -> None:
    transcripts_are_exact(ctc_checkpoint, corpus)


@pytest.mark.parametrize(
    "options",
    [{"lora_r": 8, "alignment_weight": 0.5}, {"lora_r": 0, "train_llm": True, "freeze_encoder": True}],
    ids=["lora and direct alignment", "the whole LLM and a frozen encoder"],
)
def test_stage_two_memorises_eight_utterances(
    ctc_checkpoint: Path,
    corpus: Path,
    ctc_tokenizer: CtcTokenizer,
    llm_folder: Path,
    tmp_path: Path,
    options: dict,
) -> None:
    module = LlmFinetuning(
        ctc_tokenizer,
        llm=str(llm_folder),
        encoder=ENCODER,
        encoder_checkpoint=str(ctc_checkpoint),
        ctc_weight=0.0 if options.get("freeze_encoder") else 0.3,
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
        schedule=OneCycle(),
        **options,
    )
    checkpoint = train(module, corpus, epochs=60, folder=tmp_path)
    transcripts_are_exact(checkpoint, corpus)
