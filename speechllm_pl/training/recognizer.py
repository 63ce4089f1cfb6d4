"""What both stages share as LightningModules: the loss over ranks, validation by real decoding, checkpoints."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, Self, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor, nn

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.metrics import score
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.core.tokenizer import CtcTokenizer
from speechllm_pl.data.batch import Batch
from speechllm_pl.decoding import Hypothesis
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.models.losses import LossTerm, Tokens
from speechllm_pl.training.checkpoints import RECORD, STAGES
from speechllm_pl.training.error_rates import PooledErrorRates, summary_line
from speechllm_pl.training.optimizers import grouped
from speechllm_pl.training.schedules import Schedule


class WeightedTerm(NamedTuple):
    term: LossTerm
    weight: float


class Recognizer(L.LightningModule):
    """A model that is trained on batches and judged by the text it recognises.

    A stage gives `configure_model`, `loss_terms`, `transcribe` and `settings`.
    """

    stage: ClassVar[str]
    systems: ClassVar[tuple[str, ...]]  # what `transcribe` returns; `stage` is the one to judge by
    model: nn.Module

    def __init__(self, tokenizer: str | CtcTokenizer, optimizer: OptimizerCallable, schedule: Schedule):
        super().__init__()
        known = isinstance(tokenizer, CtcTokenizer)
        self.tokenizer = tokenizer if known else CtcTokenizer.from_file(tokenizer)
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.error_rates = nn.ModuleDict({system: PooledErrorRates() for system in self.systems})

    # what a stage is

    @abstractmethod
    def loss_terms(self, batch: Batch) -> dict[str, WeightedTerm]:
        """The named terms of the training loss, the same names on every rank and in every step."""

    @abstractmethod
    def transcribe(self, batch: Batch) -> dict[str, list[Hypothesis]]:
        """One hypothesis an utterance from each of `systems`."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Constructor arguments that rebuild the model, as plain values."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """The inverse of `settings`."""

    @property
    @abstractmethod
    def speech(self) -> CtcModel:
        """Features, encoder and CTC head."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser is given; `lr` may differ between groups."""
        return grouped((p for p in self.parameters() if p.requires_grad), self.speech.encoder.blocks)

    # steps

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":  # flash attention's bf16 backward is three times slower there
            torch.backends.cuda.enable_flash_sdp(False)  # the switch holds for CPU kernels too
        self._tell_unknown_characters()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.speech.augment.epoch = self.current_epoch
        readable = bool(batch.ids)
        if not readable:  # a rank must not leave the others waiting: it contributes nothing, but takes part
            batch = _silence(batch, self.device)
        loss = torch.zeros((), device=self.device)
        for name, (term, weight) in self.loss_terms(batch).items():
            mean = self._mean_over_ranks(term)
            loss = loss + weight * mean * readable
            self.log(f"train/{name}", mean.detach(), batch_size=1)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        self.log("train/padding_share", batch.padding_share, batch_size=1)
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, list[Hypothesis]]:
        return self._score(batch)

    def test_step(self, batch: Batch, batch_index: int) -> dict[str, list[Hypothesis]]:
        return self._score(batch)

    def predict_step(self, batch: Batch, batch_index: int) -> list[dict[str, str]]:
        """→ a row an utterance: its id and each system's text."""
        found = self.transcribe(batch) if batch.ids else {}
        return [
            {"id": id_, **{system: hypotheses[row].text for system, hypotheses in found.items()}}
            for row, id_ in enumerate(batch.ids)
        ]

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    # optimisation

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameter_groups())
        total_steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # checkpoints: what was trained, and what names the rest

    def is_saved(self, name: str) -> bool:
        """Whether a checkpoint holds this entry of the state dict."""
        return True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD] = {"stage": self.stage, "settings": self.settings()}
        if self._trainer is not None and self._trainer.optimizers:
            checkpoint[RECORD]["optimizer"] = _optimizer_name(self._trainer.optimizers[0])
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if self.is_saved(name)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get(RECORD, {}).get("stage")
        if found != self.stage:
            what = STAGES.get(found, "another project")
            raise UserError(f"the checkpoint is of {what}, but one of {STAGES[self.stage]} is needed here")
        settings = checkpoint[RECORD]["settings"]
        check_tokenizer(self.tokenizer, settings["tokenizer"])
        refuse_other_settings(self.settings(), settings, "the checkpoint")
        if checkpoint.get("optimizer_states") and self._trainer is not None and self._trainer.state.fn == "fit":
            ours = _optimizer_name(self.make_optimizer(self.parameter_groups()))  # the trainer has none yet
            theirs = checkpoint[RECORD].get("optimizer", "one of an earlier version")
            if ours != theirs:
                raise UserError(
                    f"the checkpoint was trained with {theirs}, whose state means nothing to {ours}: resume with the"
                    " former optimiser, or start anew in another folder (RUN=)"
                )

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load what `on_save_checkpoint` kept.

        Raises:
            UserError: a key is missing or unexpected.
        """
        expected = {name for name in self.state_dict() if self.is_saved(name)}
        refuse_other_keys(expected, state_dict)
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

    def _mean_over_ranks(self, term: LossTerm) -> Tensor:
        """Divide by the global number of tokens: the result does not depend on how utterances fall on ranks."""
        count = term.count.to(term.total.dtype).clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count /= dist.get_world_size()  # since gradients are averaged over ranks
        return term.total / count.clamp(min=1e-6) if count > 0 else term.total * 0

    def _score(self, batch: Batch) -> dict[str, list[Hypothesis]]:
        if not batch.ids:
            return {}
        found = self.transcribe(batch)
        for system, hypotheses in found.items():
            texts = [hypothesis.text for hypothesis in hypotheses]
            self._rates_of(system).update(score(batch.ids, batch.languages, batch.texts, texts))
            _warn_if_truncated(batch, hypotheses)
        return found

    def _rates_of(self, system: str) -> PooledErrorRates:
        return cast(PooledErrorRates, self.error_rates[system])

    def _report(self, split: str) -> None:
        for system in self.systems:
            rates = self._rates_of(system).compute()
            self._rates_of(system).reset()
            if len(rates) == 1:  # the average alone
                raise UserError(f"{split}: not one recording could be read: check the paths in its manifest")
            for language, rate in rates.items():
                for kind, value in rate.items():
                    self.log(f"{split}/{system}_{kind}/{language}", value, rank_zero_only=True)
            self.log(f"{split}/{system}_wer", rates["average"]["wer"])
            if system == self.stage:  # the figure that checkpoints are chosen by
                self.log(f"{split}/wer", rates["average"]["wer"], prog_bar=True)
            if not self.trainer.sanity_checking:
                rank_zero_info(f"{split}, epoch {self.current_epoch}, {summary_line(system, rates)}")


def _optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """The optimiser's class and its number of parameter groups: what its saved state belongs to."""
    return f"{type(optimizer).__name__} on {len(optimizer.param_groups)} groups"


def check_tokenizer(tokenizer: CtcTokenizer, model: bytes) -> None:
    """
    Raises:
        UserError: `tokenizer` is not the `model` that a checkpoint was trained with.
    """
    if tokenizer.to_bytes() != model:
        ours, theirs = tokenizer.vocab_size - 1, CtcTokenizer.from_bytes(model).vocab_size - 1
        raise UserError(
            f"the tokenizer ({ours} pieces) is not the one that the checkpoint was trained with ({theirs} pieces):"
            " give the tokenizer of that run (--model.tokenizer), or train anew"
        )


def refuse_other_settings(ours: dict[str, Any], theirs: dict[str, Any], whose: str) -> None:
    """
    Raises:
        UserError: names the first setting of the model in which the two differ; dropout and the LLM's path may.
    """
    for key, value in _flat(ours).items():
        found = _flat(theirs).get(key)
        if key not in ("tokenizer", "llm", "encoder.dropout") and value != found:
            raise UserError(f"{whose} has {key} {found}, but this run {value}: give it the same, or train anew")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    encoder = {f"encoder.{name}": value for name, value in settings["encoder"].items()}
    return {**settings, **encoder, "encoder": None}


def refuse_other_keys(expected: set[str], found: Iterable[str]) -> None:
    """
    Raises:
        UserError: names the first missing or unexpected keys.
    """
    found = set(found)
    for keys, what in ((expected - found, "lacks"), (found - expected, "has unexpected")):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise UserError(
                f"the checkpoint {what} {some} ({len(keys)} in all): it was made with other model settings;"
                " use those of its run (config.yaml beside it)"
            )


def _warn_if_truncated(batch: Batch, hypotheses: list[Hypothesis]) -> None:
    cut_short = [id_ for id_, found in zip(batch.ids, hypotheses, strict=True) if found.truncated]
    if cut_short:
        rank_zero_info(f"generation met its cap before the text ended in {', '.join(cut_short)}")


def _silence(batch: Batch, device: torch.device) -> Batch:
    """A second of nothing, in place of a batch of which no recording could be read."""
    waveforms = torch.zeros(1, 16_000, device=device)
    lengths = torch.tensor([16_000], device=device)
    return batch._replace(waveforms=waveforms, lengths=lengths, texts=[""], languages=["und"], ids=[""])
