"""What both stages share as LightningModules: the loss over ranks, validation by real decoding, checkpoints."""

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from speechllm_pl.core.allocator import keep_freed_memory
from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.metrics import score
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.config import CtcConfig
from speechllm_pl.models.losses import Tokens
from speechllm_pl.optim.muon_adamw import grouped
from speechllm_pl.optim.schedules import Schedule
from speechllm_pl.recognition.hypothesis import Hypothesis, not_finite
from speechllm_pl.storage.background import BackgroundWriter
from speechllm_pl.storage.checkpoints import RECORD, STAGES, newest_complete
from speechllm_pl.storage.digests import damaged
from speechllm_pl.storage.recorded import wrong_optimizer_state, wrong_progress
from speechllm_pl.storage.shards import refuse_other_keys, refuse_other_shapes
from speechllm_pl.training.error_rates import PooledErrorRates, summary_line
from speechllm_pl.training.placement import Placed
from speechllm_pl.training.resumption import CHANGED, apply_settings, settings_of
from speechllm_pl.training.step import OptimizerStep, WeightedTerm, is_logged
from speechllm_pl.training.unread import Unread

OF_TRAINING = ("encoder.dropout", "spec_augment", "text_masking", "freeze_encoder", "ctc_weight")
MAY_DIFFER = ("tokenizer", "llm", "llm_revision", "llm_digest", *OF_TRAINING)
SKIPPED = "step %d left out, its %s is not finite; cuts on rank %d: %s"

log = logging.getLogger(__name__)


class Recognizer(Placed):
    """A model that is trained on batches and judged by the text it recognises.

    A stage gives `config`, `configure_model`, `loss_terms` and `transcribe`.
    """

    stage: ClassVar[str]
    config_class: ClassVar[type[CtcConfig]]
    config: CtcConfig
    systems: ClassVar[tuple[str, ...]]  # what `transcribe` returns; `stage` is the one to judge by

    def __init__(
        self,
        tokenizer: str | CtcTokenizer,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        *,
        max_skipped_steps: int,
        activation_checkpointing: bool,
        compile_encoder: bool,
    ):
        super().__init__(activation_checkpointing=activation_checkpointing, compile_encoder=compile_encoder)
        known = isinstance(tokenizer, CtcTokenizer)
        self.tokenizer = tokenizer if known else CtcTokenizer.from_file(tokenizer)
        refuse_impossible(optimizer)
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.max_skipped_steps = max_skipped_steps
        self.error_rates = nn.ModuleDict({system: PooledErrorRates() for system in self.systems})
        self.stop_signal = 0  # of this process, set from outside
        self.agreed_signal = 0  # the largest of all ranks, known to all of them after each step
        self.save_due = False  # on this process, set from outside; `agreed_save` on any
        self.agreed_save = False
        self.writer = BackgroundWriter()  # of its checkpoints
        self.skipped_steps = 0
        self.precision = "32-true"  # of the training that a checkpoint is of; earlier ones do not tell
        self._step = OptimizerStep()
        self._unread = Unread()
        self.step_loss = 0.0  # of the optimiser step so far, over all ranks

    # what a stage is

    @abstractmethod
    def loss_terms(self, batch: Batch) -> dict[str, WeightedTerm]:
        """The named terms of the training loss, the same names on every rank and in every step.

        The first one's count of tokens is what the whole loss is divided by.
        """

    @abstractmethod
    def transcribe(self, batch: Batch) -> dict[str, list[Hypothesis]]:
        """One hypothesis an utterance from each of `systems`."""

    def settings(self) -> dict[str, Any]:
        """The description of the model and its tokenizer, as plain values."""
        return {"tokenizer": self.tokenizer.to_bytes(), **self.config.record()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser is given; `lr` may differ between groups."""
        return grouped((p for p in self.parameters() if p.requires_grad), self.speech.encoder.blocks)

    # steps

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
            # Flash attention's bf16 backward is three times slower; the switch holds for CPU kernels too.
            torch.backends.cuda.enable_flash_sdp(False)
        self._tell_unknown_characters()

    def on_train_start(self) -> None:
        """What the configuration says of the optimiser holds, not what it said when a checkpoint was written."""
        if self.trainer.ckpt_path is not None:
            optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
            for change in apply_settings(cast(Any, optimizer), cast(Any, scheduler), self._optimizer_settings):
                rank_zero_info(f"{CHANGED}{change}")

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss as a *sum* over this rank's tokens; `on_before_optimizer_step` divides once by all of them."""
        torch.manual_seed(batch.seed)  # the same draws whichever rank has this batch, however often it resumed
        self.speech.augment.epoch = self.current_epoch
        ids, readable = batch.ids, bool(batch.ids)
        if not readable:  # a rank must not leave the others waiting: it contributes nothing, but takes part
            batch = _silence(batch, self.device)
        terms = self.loss_terms(batch)
        loss = torch.stack([weight * term.total for term, weight in terms.values()]).sum() * readable
        self._pool(terms, readable, batch)
        finite = bool(loss.isfinite())
        self._step.note(ids, finite=finite)
        if not finite:
            loss = loss * torch.nan  # some infinities have finite gradients, which would pass for good ones
        return loss * self.trainer.accumulate_grad_batches  # by which Lightning divides

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, list[Hypothesis]]:
        return self.score_batch(batch)

    def test_step(self, batch: Batch, batch_index: int) -> dict[str, list[Hypothesis]]:
        return self.score_batch(batch)

    def predict_step(self, batch: Batch, batch_index: int) -> list[dict[str, str]]:
        """→ a row an utterance: its id and each system's text.

        Raises:
            UserError: a text means nothing.
        """
        found = self._recognized(batch)
        for system, hypotheses in found.items():
            if problem := not_finite(batch.ids, hypotheses, system):
                raise UserError(problem)
        return [
            {"id": id_, **{system: hypotheses[row].text for system, hypotheses in found.items()}}
            for row, id_ in enumerate(batch.ids)
        ]

    def begin_decoding(self) -> None:
        """Make ready for `transcribe`, until `end_decoding`: then no rank waits for another."""
        self._gather()

    def end_decoding(self) -> None:
        """Everything is as it was."""
        self._release()

    def on_validation_epoch_start(self) -> None:
        self.begin_decoding()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        self._log_rates("val", data.dev_share() if isinstance(data, SpeechDataModule) else "")
        self.end_decoding()

    def on_test_epoch_end(self) -> None:
        self._log_rates("test")
        self.end_decoding()

    def on_predict_epoch_end(self) -> None:
        self.end_decoding()

    # optimisation

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameter_groups())
        self._optimizer_settings = settings_of(optimizer)
        total_steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide by the number of tokens of all ranks and all accumulated batches.

        So the result does not depend on how utterances fall on ranks and batches. Gradients arrive averaged over
        ranks, hence the factor.
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
            UserError: it was one skipped step too many.
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
        return True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD] = {"stage": self.stage, "settings": self.settings(), "skipped_steps": self.skipped_steps}
        if self._trainer is not None:
            checkpoint[RECORD]["precision"] = str(self._trainer.precision)
        if self._trainer is not None and self._trainer.optimizers:
            checkpoint[RECORD]["optimizer"] = _optimizer_name(self._trainer.optimizers[0])
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, SpeechDataModule):
            checkpoint[RECORD]["languages"] = data.mixture.cuts.language_codes
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if self.is_saved(name)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get(RECORD, {}).get("stage")
        if found != self.stage:
            what = STAGES.get(found, "another project")
            raise UserError(f"the checkpoint is of {what}, but one of {STAGES[self.stage]} is needed here")
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._refuse_other_data(checkpoint)
        self.skipped_steps = checkpoint[RECORD].get("skipped_steps", 0)
        settings = {**self.config.defaults(), **checkpoint[RECORD]["settings"]}
        check_tokenizer(self.tokenizer, settings["tokenizer"])
        refuse_other_settings(self.settings(), settings, "the checkpoint")
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._check_optimizer(checkpoint)

    def _refuse_other_data(self, checkpoint: dict[str, Any]) -> None:
        """Before its tokenizer, which is another one because the data is.

        Raises:
            UserError: the run was trained on other data.
        """
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SpeechDataModule):
            change = data.refuse_other_data(checkpoint.get(type(data).__qualname__) or {})
            if change:
                rank_zero_info(f"{CHANGED}training data {change}")

    def _check_optimizer(self, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            UserError: training cannot go on from a checkpoint, as it has no optimiser's state or another one's.
        """
        if not checkpoint.get("optimizer_states"):
            raise UserError(
                "the checkpoint holds weights alone, from which no run goes on: give a step=….ckpt of it (--ckpt_path)"
            )
        path = Path(str(self.trainer.ckpt_path))
        if problem := wrong_progress(checkpoint):
            raise UserError(damaged(path, problem))
        optimizer = self.make_optimizer(self.parameter_groups())  # the trainer has none yet
        ours = _optimizer_name(optimizer)
        theirs = checkpoint[RECORD].get("optimizer", "one of an earlier version")
        if ours != theirs:
            raise UserError(
                f"the checkpoint was trained with {theirs}, whose state means nothing to {ours}: resume with the"
                " former optimiser, or start anew in another folder (RUN=)"
            )
        sizes = [
            [len(group["params"]) for group in groups]
            for groups in (checkpoint["optimizer_states"][0]["param_groups"], optimizer.param_groups)
        ]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"other parts of the model are trained here ({sum(sizes[1])} tensors) than in the checkpoint"
                f" ({sum(sizes[0])}): give model.ctc_weight, freeze_encoder and train_llm as its run had them"
                " (config.yaml beside it), or start anew in another folder (RUN=)"
            )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if problem := wrong_optimizer_state(checkpoint["optimizer_states"][0], parameters):
            raise UserError(damaged(path, problem))

    def check_tensors(self, found: Mapping[str, Tensor]) -> None:
        """
        Raises:
            UserError: the names or the shapes in a checkpoint are not those that are saved of this module.
        """
        ours = {name: tensor for name, tensor in self.state_dict().items() if self.is_saved(name)}
        refuse_other_keys(set(ours), found)
        refuse_other_shapes(ours, found)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load what `on_save_checkpoint` kept.

        Raises:
            UserError: a key is missing or unexpected, or a tensor has another shape.
        """
        self.check_tensors(state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    # parts

    def text_tokens(self, rows: Iterable[list[int]]) -> Tokens:
        return Tokens(*pad_tokens(list(rows), self.device))

    def ctc_targets(self, batch: Batch) -> Tokens:
        return self.text_tokens(self.tokenizer.encode(text) for text in batch.texts)

    @rank_zero_only
    def _tell_unknown_characters(self) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not any(p.requires_grad for p in self.speech.head.parameters()):
            return
        if unknown := self.tokenizer.unknown_characters(datamodule.cuts("train").characters):
            rank_zero_info(
                f"the tokenizer cannot write {len(unknown)} characters of the training transcripts, which are learned"
                f" as <unk>: {' '.join(sorted(unknown)[:20])}; train the tokenizer on them (make tokenizer)"
            )

    def _pool(self, terms: dict[str, WeightedTerm], readable: bool, batch: Batch) -> None:
        means, self.agreed_signal, self.agreed_save = self._step.pool(
            terms,
            counts=readable,
            signal=self.stop_signal,
            save=self.save_due,
            due=batch.due,
            skipped=len(batch.skipped),
        )
        self._unread.add(self._step.due, self._step.skipped, batch.unread)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SpeechDataModule):
            self._unread.refuse_above(data.max_skipped_share, epoch_ends=self.trainer.is_last_batch)
        self.step_loss = self._step.loss
        if is_logged(self.trainer, self.global_step + 1):
            for name, mean in means.items():
                self.log(f"train/{name}", mean, batch_size=1)
            self.log("train/loss", self.step_loss, prog_bar=True, batch_size=1)

    def score_batch(self, batch: Batch) -> dict[str, list[Hypothesis]]:
        """Recognise a batch, and add its errors to those of `pooled_rates`."""
        found = self._recognized(batch)
        for system, hypotheses in found.items():
            texts = [hypothesis.text for hypothesis in hypotheses]
            self._rates_of(system).update(score(batch.ids, batch.languages, batch.texts, texts))
            _warn_if_truncated(batch, hypotheses, self.global_rank)
            if problem := not_finite(batch.ids, hypotheses, system):
                log.warning(problem)  # and each word counts as wrong: a long run survives a bad recording
        return found

    def _recognized(self, batch: Batch) -> dict[str, list[Hypothesis]]:
        """What `transcribe` makes of a batch; of one that is empty, or cannot be read, nothing."""
        if batch.ids:
            return self.transcribe(batch)
        if self.in_lockstep:  # the others wait for this rank's share of their forward passes
            self.transcribe(_silence(batch, self.device))
        return {}

    def _rates_of(self, system: str) -> PooledErrorRates:
        return cast(PooledErrorRates, self.error_rates[system])

    def pooled_rates(self, split: str, share: str = "") -> dict[str, float]:
        """Print the error rates of what was scored on all ranks, and forget it.

        Args:
            split: what it was, the first part of a rate's name.
            share: which part of it, in words.

        Returns:
            By name: each system's rates by language, their average, and as `wer` that of the system to judge by.

        Raises:
            UserError: not one recording could be read.
        """
        named: dict[str, float] = {}
        for system in self.systems:
            rates = self._rates_of(system).compute()
            self._rates_of(system).reset()
            if len(rates) == 1:  # the average alone
                raise UserError(f"{split}: not one recording could be read: check the paths in its manifest")
            for language, rate in rates.items():
                named |= {f"{split}/{system}_{kind}/{language}": value for kind, value in rate.items()}
            named[f"{split}/{system}_wer"] = rates["average"]["wer"]
            if system == self.stage:
                named[f"{split}/wer"] = rates["average"]["wer"]
            if not self.trainer.sanity_checking:
                what = f"{split} ({share})" if share else split
                rank_zero_info(f"{what}, epoch {self.current_epoch}, {summary_line(system, rates)}")
        return named

    def _log_rates(self, split: str, share: str = "") -> None:
        for name, value in self.pooled_rates(split, share).items():
            figure = name == f"{split}/wer"  # that checkpoints are chosen by
            self.log(name, value, prog_bar=figure, rank_zero_only=name.count("/") > 1)


def _with_gradients(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """The optimiser's class and its number of parameter groups: what its saved state belongs to."""
    return f"{type(optimizer).__name__} on {len(optimizer.param_groups)} groups"


def refuse_impossible(optimizer: OptimizerCallable) -> None:
    """
    Raises:
        UserError: a setting has a value that the optimiser cannot have, such as a negative rate.
    """
    try:
        optimizer([torch.zeros(1)])
    except ValueError as error:
        raise UserError(f"model.optimizer: {error}: correct the value") from error


def check_tokenizer(tokenizer: CtcTokenizer, model: bytes) -> None:
    """
    Raises:
        UserError: `tokenizer` is not the `model` that a checkpoint was trained with.
    """
    if tokenizer.to_bytes() != model:
        ours, theirs = tokenizer.vocab_size - 1, CtcTokenizer.from_bytes(model).vocab_size - 1
        raise UserError(
            f"the tokenizer ({ours} pieces) is not the one that the checkpoint was trained with ({theirs} pieces):"
            " give the tokenizer of that run (--model.tokenizer), or train anew in another folder (RUN=)"
        )


def refuse_other_settings(ours: dict[str, Any], theirs: dict[str, Any], whose: str) -> None:
    """
    Raises:
        UserError: names the first setting of the model in which the two differ; what concerns training alone and the
            LLM's path may, and the LLM itself is compared elsewhere.
    """
    for key, value in _flat(ours).items():
        found = _flat(theirs).get(key)
        if key not in MAY_DIFFER and value != found:
            raise UserError(
                f"{whose} has {key} {found}, but this run {value}: give it the same, or train anew in another folder"
                " (RUN=)"
            )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    encoder = {f"encoder.{name}": value for name, value in settings["encoder"].items()}
    return {**settings, **encoder, "encoder": None}


def _warn_if_truncated(batch: Batch, hypotheses: list[Hypothesis], rank: int) -> None:
    """Each rank of its own: no other has these utterances."""
    for looped, what in ((False, "met its cap before the text ended"), (True, "was ended in a loop")):
        found = zip(batch.ids, hypotheses, strict=True)
        cut_short = [id_ for id_, hypothesis in found if hypothesis.truncated and hypothesis.looped == looped]
        if cut_short:
            log.warning("generation %s; cuts on rank %d: %s", what, rank, ", ".join(cut_short))


def _silence(batch: Batch, device: torch.device) -> Batch:
    """A second of nothing, in place of a batch of which no recording could be read."""
    waveforms = torch.zeros(1, SAMPLING_RATE, device=device)
    lengths = torch.tensor([SAMPLING_RATE], device=device)
    return batch._replace(waveforms=waveforms, lengths=lengths, texts=[""], languages=["und"], ids=[""])
