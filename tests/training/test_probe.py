"""The largest batches are tried before training, and what does not fit is told."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import Concatenate, PerturbSpeed
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training import probe
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.probe import LargestBatches


class Limited(CtcPretraining):
    """Has memory for so many seconds of padded audio in training, and for so many in decoding."""

    def __init__(self, *arguments: Any, limit: float, val_limit: float = 99, **more: Any):
        super().__init__(*arguments, **more)
        self.limit, self.val_limit = limit, val_limit
        self.tried: list[float] = []
        self.decoded: list[float] = []

    def transcribe(self, batch: Batch, max_new_tokens: int | None = None) -> Any:
        assert not self.model.training
        assert not torch.is_grad_enabled()
        self.decoded.append(batch.waveforms.numel() / 16_000)
        if self.decoded[-1] > self.val_limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().transcribe(batch, max_new_tokens)

    def loss_terms(self, batch: Batch) -> Any:
        seconds = batch.waveforms.numel() / 16_000
        self.tried.append(round(seconds, 2))
        if seconds > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss_terms(batch)


def probed(
    corpus: Path,
    tokenizer: CtcTokenizer,
    limit: float,
    val_limit: float = 99,
    limit_val_batches: float = 1.0,
    frozen: bool = False,
    **options: Any,
) -> Limited:
    encoder = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64)
    module = Limited(tokenizer, encoder=encoder, limit=limit, val_limit=val_limit)
    module.configure_model()
    if frozen:
        module.model.layers.eval()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=limit_val_batches
    )
    trainer.datamodule = SpeechDataModule(str(corpus), max_duration=4.0, num_buckets=3, **options)  # type: ignore[attr-defined]
    LargestBatches(on_cpu=True).on_fit_start(trainer, module)
    return module


def test_every_bucket_is_tried_with_its_longest_utterances(corpus: Path, ctc_tokenizer: CtcTokenizer) -> None:
    module = probed(corpus, ctc_tokenizer, limit=99)
    buckets = SpeechDataModule(str(corpus), max_duration=4.0, num_buckets=3).buckets("train")
    longest = [float(seconds) * int(size) for seconds, size in zip(buckets.longest, buckets.batch_sizes, strict=True)]
    assert len(module.tried) == len(longest) > 1
    assert all(tried <= most + 0.01 for tried, most in zip(module.tried, longest, strict=True))
    assert max(module.tried) > 0.9 * max(longest)
    assert all(p.grad is None for p in module.parameters())


def test_batches_are_tried_as_long_as_augmentation_may_make_them(corpus: Path, ctc_tokenizer: CtcTokenizer) -> None:
    augmentations = [PerturbSpeed(factors=(0.9,)), Concatenate(room=1.5)]
    module = probed(corpus, ctc_tokenizer, limit=99, augmentations=augmentations)
    cuts = SpeechDataModule(str(corpus)).cuts("train")
    longest = max(cut.duration for cut in cuts) * 1.5 / 0.9
    assert module.tried[-1] == pytest.approx(longest * int(4.0 / longest), abs=0.01)
    assert max(module.tried) <= 4.0


def test_what_does_not_fit_is_told_with_what_does(corpus: Path, ctc_tokenizer: CtcTokenizer) -> None:
    tried = sorted(probed(corpus, ctc_tokenizer, limit=99).tried)
    with pytest.raises(UserError, match=r"does not fit the memory of cpu; .*--data.max_duration"):
        probed(corpus, ctc_tokenizer, limit=tried[-1] - 0.05)


def test_the_largest_batches_of_dev_are_recognised(corpus: Path, ctc_tokenizer: CtcTokenizer) -> None:
    """The one of most seconds, and that of the longest utterances."""
    dev: dict[str, Any] = {"dev": "train.jsonl.gz", "val_max_duration": 3.0}  # of many lengths
    module = probed(corpus, ctc_tokenizer, limit=99, **dev)
    batches = list(SpeechDataModule(str(corpus), max_duration=4.0, num_buckets=3, **dev).val_dataloader())
    sizes = {batch.waveforms.numel() / 16_000 for batch in batches}
    longest = max(batches, key=lambda batch: batch.waveforms.shape[1])
    assert sorted(module.decoded) == [longest.waveforms.numel() / 16_000, max(sizes)]
    assert max(module.decoded) <= 3.0 < max(module.tried)
    assert all(part.training for part in module.modules())
    with pytest.raises(UserError, match=r"utterances of dev, .* does not fit .*--data.val_max_duration"):
        probed(corpus, ctc_tokenizer, limit=99, val_limit=max(sizes) - 0.05, **dev)
    with pytest.raises(UserError, match=r"a batch of 1 utterances of dev, .*: divide or remove cut \S+$"):
        probed(corpus, ctc_tokenizer, limit=99, val_limit=0, val_max_duration=0.1)
    assert not probed(corpus, ctc_tokenizer, limit=99, limit_val_batches=0).decoded


def test_parts_in_evaluation_mode_stay_so(corpus: Path, ctc_tokenizer: CtcTokenizer) -> None:
    """Such as a frozen LLM, whose dropout is off."""
    module = probed(corpus, ctc_tokenizer, limit=99, frozen=True)
    assert module.decoded
    assert module.model.training
    assert not any(part.training for part in module.model.layers.modules())


def test_an_llm_writes_a_few_tokens_and_its_weights_are_as_before(
    corpus: Path, ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, llm_folder: Path, monkeypatch
) -> None:
    monkeypatch.setattr(probe, "TOKENS", 5)
    module, texts = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder), []
    module.configure_model()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    recognized = module.recognized
    monkeypatch.setattr(module, "recognized", lambda *given, **how: texts.append(recognized(*given, **how)["llm"]))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.datamodule = SpeechDataModule(str(corpus), max_duration=4.0, num_buckets=3)  # type: ignore[attr-defined]
    LargestBatches(on_cpu=True).on_fit_start(trainer, module)
    assert 1 <= max(hypothesis.num_tokens for batch in texts for hypothesis in batch) <= 5
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_other_models_and_processors_are_left_alone(corpus: Path, ctc_tokenizer: CtcTokenizer) -> None:
    LargestBatches(on_cpu=True).on_fit_start(L.Trainer(accelerator="cpu", logger=False), BoringModel())  # type: ignore[arg-type]
    module = Limited(ctc_tokenizer, encoder=ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64), limit=0)
    module.configure_model()
    trainer = L.Trainer(accelerator="cpu", logger=False)
    trainer.datamodule = SpeechDataModule(str(corpus))  # type: ignore[attr-defined]
    LargestBatches().on_fit_start(trainer, module)
    assert module.tried == []
