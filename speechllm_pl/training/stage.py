"""Common LightningModule of both stages: the loss over ranks, the optimiser's steps, checkpoints."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.positions import LlmInput
from speechllm_pl.models.config import CtcConfig
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.models.losses import WeightedTerm, weighted_sum
from speechllm_pl.optim.muon_adamw import HIDDEN_MATRICES, grouped
from speechllm_pl.optim.schedules import Schedule
from speechllm_pl.recognition.recognizer import PREFIX
from speechllm_pl.storage.background import BackgroundWriter
from speechllm_pl.storage.checkpoints import RECORD, newest_complete
from speechllm_pl.storage.pretrained_files import refuse_other_weights
from speechllm_pl.storage.recorded import ENCODER_DIGEST
from speechllm_pl.storage.tokenizers import read_tokenizer
from speechllm_pl.training.checkpoint_record import (
    check_tokenizer,
    optimizer_name,
    refuse_other_optimizer,
    refuse_other_settings,
    refuse_other_stage,
)
from speechllm_pl.training.resumption import CHANGED, apply_settings, settings_of
from speechllm_pl.training.step import Agreed, OptimizerStep, is_logged
from speechllm_pl.training.validation import Validated, silence

SKIPPED = "step %d left out, its %s is not finite; cuts on rank %d: %s"

log = logging.getLogger(__name__)


class Stage(Validated):
    """Model that is trained on batches and judged by the text it recognises.

    A stage defines `config`, `loss_terms`, and `configure_model`, which sets `model` and `recognizer`.
    """

    config_class: ClassVar[type[CtcConfig]]
    config: CtcConfig

    def __init__(
        self,
        config: CtcConfig,
        tokenizer: str | CtcTokenizer,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        max_skipped_steps: int,
        activation_checkpointing: bool,
        compile_encoder: bool,
    ):
        super().__init__(activation_checkpointing=activation_checkpointing, compile_encoder=compile_encoder)
        self.config = replace(config, encoder=config.encoder.pinned())
        self.tokenizer = self.config.encoder.own_tokenizer() or _given(tokenizer)
        refuse_impossible(optimizer)
        self.encoder_digest = ""  # tells the pretrained weights of the encoder from others, once they are loaded
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.max_skipped_steps = max_skipped_steps
        self.stop_signal = 0  # of this process, set from outside
        self.save_due = False  # on this process, set from outside
        self.agreed = Agreed({})  # after each batch
        self.checks: list[Callable[[dict[str, Any]], None]] = []  # of a checkpoint to resume; callbacks add theirs
        self.writer = BackgroundWriter()  # of its checkpoints
        self.skipped_steps = 0
        self._step = OptimizerStep()
        self.step_loss = 0.0  # of the optimiser step so far, over all ranks

    # what a stage is

    @abstractmethod
    def loss_terms(self, batch: Batch) -> dict[str, WeightedTerm]:
        """The named terms of the training loss, the same names on every rank and in every step.

        The whole loss is divided by the first term's number of tokens.
        """

    def build_speech(self) -> CtcModel:
        """Build features, encoder and CTC head, without weights where a pretrained encoder's are sent to this rank."""
        sent = self.receives_weights and self.config.encoder.is_pretrained
        with torch.device("meta") if sent else nullcontext():
            speech = self.config.build_speech(self.tokenizer.vocab_size)
        self.encoder_digest = speech.digest = self.of_first_rank(speech.digest)
        return speech

    @property
    def llm_input(self) -> LlmInput | None:
        """How to count the LLM positions of utterances; None without an LLM."""
        return None

    def settings(self) -> dict[str, Any]:
        """The description of the model and its tokenizer, as plain values."""
        encoder = {ENCODER_DIGEST: self.encoder_digest} if self.encoder_digest else {}
        return {"tokenizer": self.tokenizer.to_bytes(), **self.config.record(), **encoder}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser; `lr` may differ between them."""
        return self.speech_groups()

    def speech_groups(self, lr_factor: float = 1.0) -> list[dict[str, Any]]:
        """Parameter groups of encoder and CTC head, pretrained weights apart, with a share of the learning rate."""
        lr = self.make_optimizer([torch.zeros(1)]).defaults["lr"] * lr_factor
        slower: dict[float, list[nn.Parameter]] = {}
        for parameter, factor in self.speech.parameter_lr_factors():
            slower.setdefault(factor, []).append(parameter)
        apart = {id(parameter) for parameters in slower.values() for parameter in parameters}
        new = [p for p in self.speech.parameters() if p.requires_grad and id(p) not in apart]
        groups = grouped(new, self.speech.layers, lr=lr)
        return groups + [
            {"params": members, HIDDEN_MATRICES: False, "lr": lr * factor} for factor, members in slower.items()
        ]

    # steps

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            # Flash attention's bf16 backward is three times slower; the switch holds for CPU kernels too.
            torch.backends.cuda.enable_flash_sdp(False)

    def on_train_start(self) -> None:
        """Apply the optimiser settings of the configuration over those of the restored checkpoint."""
        if self.trainer.ckpt_path is not None:
            optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
            for change in apply_settings(cast(Any, optimizer), cast(Any, scheduler), self._optimizer_settings):
                rank_zero_info(f"{CHANGED}{change}")

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss *summed* over this rank's tokens; `on_before_optimizer_step` divides once by all of them."""
        torch.manual_seed(batch.seed)  # the same draws whichever rank has this batch, however often it resumed
        self.speech.augment.epoch = self.current_epoch
        ids, readable = batch.ids, bool(batch.ids)
        if not readable:  # a rank must not leave the others waiting: it contributes nothing, but takes part
            batch = silence(batch, self.speech.dim, self.device)
        terms = self.loss_terms(batch)
        loss = weighted_sum(terms) * readable
        self._pool(terms, readable, batch)
        finite = bool(loss.isfinite())
        self._step.note(ids, finite=finite)
        if not finite:
            loss = loss * torch.nan  # some infinities have finite gradients, which would pass for good ones
        return loss * self.trainer.accumulate_grad_batches  # by which Lightning divides

    # optimisation

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameter_groups())
        self._optimizer_settings = settings_of(optimizer)
        total_steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide by the number of tokens of all ranks and all accumulated batches.

        The result then does not depend on how utterances are spread over ranks and batches. Gradients arrive averaged
        over ranks, hence the factor.
        """
        scale = self.trainer.world_size / max(self._step.tokens, 1.0)
        for parameter in _with_gradients(optimizer):
            cast(Tensor, parameter.grad).mul_(scale)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by one norm over all ranks' shards, or leave the step out when that norm is not finite."""
        trained = _with_gradients(optimizer)
        norm = nn.utils.get_total_norm([cast(Tensor, p.grad) for p in trained])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not norm.isfinite():  # the same on every rank
            self._skip_step(optimizer)
        elif gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(trained, gradient_clip_val, norm)
        if is_logged(self.trainer, self.global_step + 1):
            self.log("train/gradient_norm", norm, batch_size=1)
        self._step = OptimizerStep()

    def _skip_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave weights and optimiser as they are: without gradients it moves nothing, not even by momentum.

        Raises:
            UserError: more than `max_skipped_steps` were skipped.
        """
        optimizer.zero_grad(set_to_none=True)
        self.skipped_steps += 1
        self.log("train/skipped_steps", float(self.skipped_steps), batch_size=1)
        what, suspects = self._step.suspects()
        if suspects:
            log.warning(SKIPPED, self.global_step + 1, what, self.global_rank, ", ".join(suspects))
        if self.skipped_steps > self.max_skipped_steps:
            self.writer.wait()
            last = newest_complete(Path(self.trainer.default_root_dir, "checkpoints"))
            raise UserError(
                f"{self.skipped_steps} steps had a loss or gradient that is not finite, more than max_skipped_steps"
                f" {self.max_skipped_steps}: look at the cuts named above, or lower the learning rate; the last good"
                f" checkpoint is {last or 'not written yet'}"
            )

    # checkpoints: what was trained, and what names the rest

    def is_saved(self, name: str) -> bool:
        """Whether a checkpoint holds this entry of the state dict."""
        return self.recognizer.model.is_saved(name.removeprefix(PREFIX))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        record = checkpoint.setdefault(RECORD, {})  # callbacks come first
        record |= {"stage": self.stage, "settings": self.settings(), "skipped_steps": self.skipped_steps}
        if self._trainer is not None:
            record["precision"] = str(self._trainer.precision)
            if self._trainer.optimizers:
                record["optimizer"] = optimizer_name(self._trainer.optimizers[0])
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if self.is_saved(name)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_other_stage(checkpoint, self.stage)
        fits = self._trainer is not None and self._trainer.state.fn == "fit"
        if fits:
            for check in self.checks:
                check(checkpoint)
        self.skipped_steps = checkpoint[RECORD].get("skipped_steps", 0)
        settings = {**self.config.defaults(), **checkpoint[RECORD]["settings"]}
        check_tokenizer(self.tokenizer, settings["tokenizer"])
        refuse_other_settings(self.settings(), settings, "the checkpoint")
        self.refuse_another_encoder(settings)
        if fits:
            optimizer = self.make_optimizer(self.parameter_groups())  # the trainer has none yet
            refuse_other_optimizer(checkpoint, optimizer, Path(str(self.trainer.ckpt_path)))

    def check_tensors(self, found: Mapping[str, Tensor]) -> None:
        """Raise a UserError unless names and shapes in a checkpoint are those that are saved of this module."""
        self.recognizer.check_tensors(found)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load what `on_save_checkpoint` kept.

        Raises:
            UserError: a key is missing or unexpected, or a tensor has another shape.
        """
        self.check_tensors(state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    # parts

    def refuse_another_encoder(self, settings: dict[str, Any]) -> None:
        """Raise a UserError if a checkpoint's settings are of an encoder that began with other pretrained weights."""
        if self.encoder_digest:
            encoder: Any = self.config.encoder
            recorded = settings.get(ENCODER_DIGEST, "")
            refuse_other_weights("encoder", encoder.name, self.encoder_digest, recorded, warn=rank_zero_warn)

    def ctc_targets(self, batch: Batch) -> Padded:
        return pad_tokens([self.tokenizer.encode(text) for text in batch.texts], self.device)

    def _pool(self, terms: dict[str, WeightedTerm], readable: bool, batch: Batch) -> None:
        counts = batch.due, len(batch.skipped)
        self.agreed = self._step.pool(terms, readable, *counts, self.stop_signal, self.save_due)
        self.step_loss = self._step.loss
        if is_logged(self.trainer, self.global_step + 1):
            for name, mean in self.agreed.means.items():
                self.log(f"train/{name}", mean, batch_size=1)
            self.log("train/loss", self.step_loss, prog_bar=True, batch_size=1)


def _given(tokenizer: str | CtcTokenizer) -> CtcTokenizer:
    if not tokenizer:
        raise UserError("a stage needs a tokenizer: give --model.tokenizer")
    return tokenizer if isinstance(tokenizer, CtcTokenizer) else read_tokenizer(tokenizer)


def _with_gradients(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def refuse_impossible(optimizer: OptimizerCallable) -> None:
    """Raise a UserError if a setting has a value that the optimiser cannot have, such as a negative rate."""
    try:
        optimizer([torch.zeros(1)])
    except ValueError as error:
        raise UserError(f"model.optimizer: {error}: correct the value") from error
