"""Stage 2: the LLM learns to read the encoder's frames (`make finetune`)."""

from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.prompt import Prompt, pad_tokens
from speechllm_pl.core.sharding_policy import refuse_quantized_shards
from speechllm_pl.core.tensor_sizes import GIB, dtype_bytes
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.positions import LlmInput
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.llm import (
    LlmTokenizer,
    decoder_layers,
    empty_llm,
    llm_commit,
    llm_config,
    load_llm,
    most_positions,
)
from speechllm_pl.models.losses import WeightedTerm
from speechllm_pl.models.speech_llm import SpeechLLM, embedding_lengths
from speechllm_pl.optim.schedules import Schedule, WarmupExponential
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.checkpoints import RECORD, newest, read_checkpoint
from speechllm_pl.storage.pretrained_files import refuse_other_weights, weights_digest
from speechllm_pl.training.checkpoint_record import check_tokenizer, refuse_other_settings
from speechllm_pl.training.stage import Stage

FP32_TOLD_FROM = GIB
"""Bytes of frozen fp32 weights from which it is told that half of them would do."""


class LlmFinetuning(Stage):
    """Trains bridge, LoRA and, unless frozen, encoder and CTC head; the LLM itself stays as it is.

    Args:
        tokenizer: SentencePiece model of the CTC classes, the one of stage 1; the command line takes the one in
            `data.root` by default.
        encoder_checkpoint: Stage-1 checkpoint to start from: a path, or a pattern of which the newest match is taken
            and printed. A run needs it to begin, and has its own weights once it is resumed.
        llm_checkpoint: Stage-2 checkpoint to start from, in place of `encoder_checkpoint`: all of its weights.
        encoder_lr_factor: Learning rate of the encoder, relative to that of the new parts.
        optimizer: Optimiser of torch by its class path; its `lr` is the schedule's peak.
        schedule: Schedule of the learning rate.
        max_skipped_steps: Number of steps that may be left out because their loss or gradient is not finite; one more
            ends the run.
        activation_checkpointing: Keep less for the backward pass and compute it twice: less memory, more time.
        compile_encoder: Compile the encoder's blocks with `torch.compile`.
        config: fields of `SpeechLlmConfig`.
    """

    stage = "llm"
    systems = ("ctc", "llm")
    config_class = SpeechLlmConfig
    config: SpeechLlmConfig
    model: SpeechLLM

    def __init__(
        self,
        tokenizer: str | CtcTokenizer = "",
        encoder_checkpoint: str | None = None,
        llm_checkpoint: str | None = None,
        encoder_lr_factor: float = 1.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule = WarmupExponential(5_000, 245_000, 0.01),  # noqa: B008 (frozen)
        max_skipped_steps: int = 20,
        activation_checkpointing: bool = False,
        compile_encoder: bool = False,
        **config: Any,
    ):
        described = SpeechLlmConfig(**config)
        described = replace(described, llm_revision=llm_commit(described.llm, described.llm_revision))
        options = (max_skipped_steps, activation_checkpointing, compile_encoder)
        super().__init__(described, tokenizer, optimizer, schedule, *options)
        self.encoder_checkpoint = encoder_checkpoint
        self.llm_checkpoint = llm_checkpoint
        self.encoder_lr_factor = encoder_lr_factor
        self.prompt = Prompt(self.config.instruction)
        self.llm_tokenizer = LlmTokenizer(self.config.llm, self.config.llm_revision)
        self.digest = ""  # tells the LLM's weights from others, once they are loaded

    def setup(self, stage: str) -> None:
        """Check optimiser and strategy before any weight of the LLM is read."""
        super().setup(stage)
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
            refuse_quantized_shards(self.config.quantize, type(strategy).__name__)

    @property
    def llm_input(self) -> LlmInput:
        """How to count the LLM positions of utterances, for `data.max_tokens`, and how many the LLM has."""
        return LlmInput(
            self._embeddings_of,
            lambda language: self.llm_tokenizer.count([self.prompt.before_audio(language)])[0],
            self.llm_tokenizer.count,
            self.llm_tokenizer.digest,
            limit=most_positions(llm_config(self.config.llm, self.config.llm_revision)),
        )

    def _embeddings_of(self, seconds: np.ndarray) -> np.ndarray:
        """`(N,)` numbers of audio embeddings for `(N,)` seconds."""
        samples = torch.from_numpy(np.round(seconds.astype(np.float64) * SAMPLING_RATE)).long()
        return embedding_lengths(self.config, samples).int().numpy()

    @property
    def one_rank_reads(self) -> bool:
        """Whether only the first rank reads weights. Of a quantised LLM each rank reads and packs its own."""
        return super().one_rank_reads and self.config.quantize == "none"

    def configure_model(self) -> None:
        if hasattr(self, "model"):
            return
        config = self.config
        if self.receives_weights:
            llm = empty_llm(config.llm, config.dtype, config.llm_revision)
        else:
            llm = load_llm(config.llm, config.dtype, config.quantize, config.llm_revision)
        self.digest = self.of_first_rank(weights_digest(config.llm, config.llm_revision))
        self.model = SpeechLLM(config, self.build_speech(), llm, self.llm_tokenizer.special_tokens)
        self.recognizer = Recognizer(self.model, self.tokenizer, self.llm_tokenizer, self.prompt)
        self._tell_what_stays()
        if self._trainer is not None and self.trainer.ckpt_path is None and not self.receives_weights:
            if self.llm_checkpoint:
                self.load_all(self.llm_checkpoint)
            else:
                self.load_encoder()
        layers = decoder_layers(self.model.llm)
        self.arrange([*self.speech.layers, *layers], trained_llm=layers if self.config.train_llm else ())

    def _tell_what_stays(self) -> None:
        if self.config.freeze_encoder:
            rank_zero_info(
                "freeze_encoder: encoder and CTC head stay as stage 1 left them; spec_augment, encoder.dropout and"
                " ctc_weight have no effect"
            )
        elif not self.config.ctc_weight:
            rank_zero_warn(
                "ctc_weight 0 while the encoder is trained: the CTC head stays behind, and its drafts and timings get"
                " worse; give --model.ctc_weight 0.1, or --model.freeze_encoder true"
            )
        if self._trainer is not None:
            tell_of_fp32(self.model.llm, self.trainer)

    def load_encoder(self) -> None:
        """Start from the encoder and CTC head of a stage-1 run, which a pretrained encoder can do without.

        Raises:
            UserError: the checkpoint does not exist, or has another stage, tokenizer or size.
        """
        encoder = self.config.encoder
        if self.encoder_checkpoint is None and encoder.is_pretrained:
            if not (encoder.has_own_head or self.config.trains_ctc_head):
                raise UserError(
                    "this encoder brings no CTC head, and the run trains none: give a stage-1 checkpoint of it with"
                    " --model.encoder_checkpoint (CKPT=), or a ctc_weight above 0 without freeze_encoder"
                )
            rank_zero_info("stage 2 begins with the pretrained encoder, without stage 1")
            return
        if self.encoder_checkpoint is None:
            raise UserError("stage 2 starts from a stage-1 checkpoint: give --model.encoder_checkpoint (CKPT=)")
        path = newest(self.encoder_checkpoint)
        checkpoint = read_checkpoint(path, stage="ctc")
        settings = checkpoint[RECORD]["settings"]
        check_tokenizer(self.tokenizer, settings["tokenizer"])
        refuse_other_settings({"encoder": self.config.record()["encoder"]}, settings, f"checkpoint {path}")
        self.refuse_another_encoder(settings)
        Recognizer(self.speech, self.tokenizer).fill(checkpoint["state_dict"])
        rank_zero_info(f"encoder and CTC head from {path}")

    def load_all(self, pattern: str) -> None:
        """Start from every weight of a stage-2 run.

        Args:
            pattern: a path, or a pattern of which the newest match is taken.

        Raises:
            UserError: the checkpoint does not exist, or has another stage, tokenizer, LLM or size.
        """
        path = newest(pattern)
        checkpoint = read_checkpoint(path, stage="llm")
        settings = {**self.config.defaults(), **checkpoint[RECORD]["settings"]}
        check_tokenizer(self.tokenizer, settings["tokenizer"])
        refuse_other_settings(self.settings(), settings, f"checkpoint {path}")
        self._refuse_another_llm(settings["llm_digest"], settings.get("llm_revision"))
        self.refuse_another_encoder(settings)
        self.recognizer.fill(checkpoint["state_dict"])
        rank_zero_info(f"all weights from {path}")

    def parameter_groups(self) -> list[dict[str, Any]]:
        encoder = {id(p) for p in self.speech.parameters()}
        trained = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [p for p in trained if id(p) not in encoder]}]
        if not self.config.freeze_encoder:
            groups += self.speech_groups(self.encoder_lr_factor)
        return groups

    def loss_terms(self, batch: Batch) -> dict[str, WeightedTerm]:
        text = pad_tokens(self.llm_tokenizer.encode(batch.texts), self.device)
        instruction, targets = self.recognizer.instruction(batch.languages), self.ctc_targets(batch)
        return self.model.losses(batch.audio, targets, instruction, text, batch.simulated)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        settings = checkpoint[RECORD]["settings"]
        self._refuse_another_llm(settings["llm_digest"], settings.get("llm_revision"))

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "llm_digest": self.digest}

    def _refuse_another_llm(self, recorded: str, revision: str | None = None) -> None:
        """Refuse another LLM than the checkpoint's, once it is loaded.

        Args:
            recorded: digest in the checkpoint; empty in earlier ones, for hub names.
            revision: commit in the checkpoint.

        Raises:
            UserError: the LLM is not the one that the checkpoint was trained with.
        """
        commit = revision if revision != self.config.llm_revision else None
        remedy = f", take its commit (--model.llm_revision {commit})" if commit else ""
        refuse_other_weights("LLM", self.config.llm, self.digest, recorded, remedy, warn=rank_zero_warn)


def tell_of_fp32(llm: nn.Module, trainer: L.Trainer) -> None:
    """Warn, where a run begins, of large frozen weights in fp32 whose products are in bf16 anyway."""
    frozen = dtype_bytes(p for p in llm.parameters() if not p.requires_grad).get(torch.float32, 0)
    if trainer.ckpt_path is None and trainer.precision == "bf16-mixed" and frozen >= FP32_TOLD_FROM:
        rank_zero_warn(
            f"llm_dtype float32: the frozen LLM takes {frozen / GIB:.1f} GiB, and bf16-mixed multiplies in bf16 anyway;"
            " half of that is enough with --model.llm_dtype bfloat16"
        )
