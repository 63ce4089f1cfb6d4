"""Stage 1: the encoder, trained with CTC (`make pretrain-ctc`)."""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.data.batch import Batch
from speechllm_pl.models.config import CtcConfig
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.models.losses import WeightedTerm
from speechllm_pl.optim.schedules import Schedule, WarmupExponential
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.training.stage import Stage


class CtcPretraining(Stage):
    """Trains encoder and CTC head.

    Args:
        tokenizer: SentencePiece model of the CTC classes; the command line takes the one in `data.root` by default.
        optimizer: Optimiser of torch by its class path; its `lr` is the schedule's peak.
        schedule: Schedule of the learning rate.
        max_skipped_steps: Number of steps that may be left out because their loss or gradient is not finite; one more
            ends the run.
        activation_checkpointing: Keep less for the backward pass and compute it twice: less memory, more time.
        compile_encoder: Compile the encoder's blocks with `torch.compile`.
        config: fields of `CtcConfig`.
    """

    stage = "ctc"
    systems = ("ctc",)
    config_class = CtcConfig
    model: CtcModel

    def __init__(
        self,
        tokenizer: str | CtcTokenizer = "",
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule = WarmupExponential(),  # noqa: B008 (frozen)
        max_skipped_steps: int = 20,
        activation_checkpointing: bool = False,
        compile_encoder: bool = False,
        **config: Any,
    ):
        options = (max_skipped_steps, activation_checkpointing, compile_encoder)
        super().__init__(CtcConfig(**config), tokenizer, optimizer, schedule, *options)

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.model = self.build_speech()
            self.recognizer = Recognizer(self.model, self.tokenizer)
            self.arrange(self.speech.layers)

    def loss_terms(self, batch: Batch) -> dict[str, WeightedTerm]:
        return self.model.losses(batch.audio, self.ctc_targets(batch))
