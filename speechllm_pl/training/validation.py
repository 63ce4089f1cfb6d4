"""Validation of a model in training by the text it recognises: decoding on all ranks, error rates, warnings."""

import logging
from contextlib import ExitStack
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.metrics import score
from speechllm_pl.core.padded import Padded
from speechllm_pl.data.batch import Batch
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.hypothesis import Hypothesis, not_finite
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.training.error_rates import PooledErrorRates, summary_line
from speechllm_pl.training.placement import Placed

log = logging.getLogger(__name__)


class Validated(Placed):
    """Module that holds a recogniser, and validates, tests and predicts with it."""

    stage: ClassVar[str]  # the system to judge by
    systems: ClassVar[tuple[str, ...]]  # what the recogniser returns hypotheses of
    recognizer: Recognizer  # of the model, as soon as there is one

    def __init__(self, **placement: Any):
        super().__init__(**placement)
        self.error_rates = nn.ModuleDict({system: PooledErrorRates() for system in self.systems})
        self.dev_share = ""  # the part of dev that validations score, in words, set from outside
        self._merged = ExitStack()

    @property
    def speech(self) -> CtcModel:
        return self.recognizer.speech

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, list[Hypothesis]]:
        return self.score_batch(batch)

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_index: int) -> list[dict[str, str]]:
        """Recognise a batch; return a row per utterance with its id and each system's text.

        Raises:
            UserError: a text is meaningless, as its logits are not finite.
        """
        found = self.recognized(batch)
        for system, hypotheses in found.items():
            if problem := not_finite(batch.ids, hypotheses, system):
                raise UserError(problem)
        return [
            {"id": id_, **{system: hypotheses[row].text for system, hypotheses in found.items()}}
            for row, id_ in enumerate(batch.ids)
        ]

    def begin_decoding(self) -> None:
        """Prepare for `transcribe` until `end_decoding`: gather the model, so that no rank waits, and merge LoRA."""
        self._gather()
        if self._mesh is None:
            self._merged.enter_context(self.recognizer.merged())

    def end_decoding(self) -> None:
        """Restore the model as it was before `begin_decoding`."""
        self._merged.close()
        self._release()

    def on_validation_epoch_start(self) -> None:
        self.begin_decoding()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self._log_rates("val", self.dev_share)
        self.end_decoding()

    def on_test_epoch_end(self) -> None:
        self._log_rates("test")
        self.end_decoding()

    def on_predict_epoch_end(self) -> None:
        self.end_decoding()

    def transcribe(self, batch: Batch, max_new_tokens: int | None = None) -> dict[str, list[Hypothesis]]:
        """Return one hypothesis per utterance from each of `systems`: the texts of greedy search."""
        decoder = "greedy" if self.in_lockstep else "speculative"  # drafts differ in their passes
        options = DecodingOptions(decoder, max_new_tokens=max_new_tokens)
        return self.recognizer.transcribe(*batch.audio, batch.languages, options, self.all_ended)

    def score_batch(self, batch: Batch) -> dict[str, list[Hypothesis]]:
        """Recognise a batch, and add its errors to those of `pooled_rates`."""
        found = self.recognized(batch)
        for system, hypotheses in found.items():
            texts = [hypothesis.text for hypothesis in hypotheses]
            self._rates_of(system).update(score(batch.ids, batch.languages, batch.texts, texts))
            _warn_if_truncated(batch, hypotheses, self.global_rank)
            if problem := not_finite(batch.ids, hypotheses, system):
                log.warning(problem)  # and each word counts as wrong: a long run survives a bad recording
        return found

    def recognized(self, batch: Batch, max_new_tokens: int | None = None) -> dict[str, list[Hypothesis]]:
        """Hypotheses of `transcribe` for a batch; none if it is empty or cannot be read."""
        if batch.ids:
            return self.transcribe(batch, max_new_tokens)
        if self.in_lockstep:  # the others wait for this rank's share of their forward passes
            self.transcribe(silence(batch, self.speech.dim, self.device), max_new_tokens)
        return {}

    def _rates_of(self, system: str) -> PooledErrorRates:
        return cast(PooledErrorRates, self.error_rates[system])

    def pooled_rates(self, split: str, share: str = "") -> dict[str, float]:
        """Print the pooled error rates of all batches scored on all ranks, and reset the counts.

        Args:
            split: name of the split, the first part of each rate's name.
            share: the part of it that was scored, in words.

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


def _warn_if_truncated(batch: Batch, hypotheses: list[Hypothesis], rank: int) -> None:
    """Warn of utterances whose text was cut short; each rank warns of its own."""
    for looped, what in ((False, "met its cap before the text ended"), (True, "was ended in a loop")):
        found = zip(batch.ids, hypotheses, strict=True)
        cut_short = [id_ for id_, hypothesis in found if hypothesis.truncated and hypothesis.looped == looped]
        if cut_short:
            log.warning("generation %s; cuts on rank %d: %s", what, rank, ", ".join(cut_short))


def silence(batch: Batch, dim: int, device: torch.device) -> Batch:
    """A second of silence, in place of a batch of which no recording could be read.

    Args:
        dim: width of a frame, where batches have frames in place of waveforms.
    """
    waveforms = torch.zeros(1, SAMPLING_RATE, device=device)
    lengths = torch.tensor([SAMPLING_RATE], device=device)
    frozen = batch.frozen and Padded(torch.zeros(1, 50, dim, device=device), torch.tensor([50], device=device))
    utterance = {"waveforms": waveforms, "lengths": lengths, "texts": [""], "languages": ["und"], "ids": [""]}
    return batch._replace(**utterance, frozen=frozen, simulated=0)
