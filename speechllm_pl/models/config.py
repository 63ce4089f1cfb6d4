"""Descriptions of models, spelled once.

These dataclasses are arguments of the models' constructors, options of the command line (`--model.lora_r`, with the
fields' docstrings as help), the record in a checkpoint, and what `speechllm plan` is asked about. Where there is a
choice, of encoder or bridge, configurations and records name the class: `{class_path: …, init_args: {…}}`.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from inspect import isabstract
from typing import Any, Literal, Self

import torch

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.prompt import Prompt
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.bridges.protocol import BridgeConfig
from speechllm_pl.models.ctc import CtcModel, EncoderConfig
from speechllm_pl.models.encoders import ConformerConfig
from speechllm_pl.models.features import SpecAugmentConfig

Quantization = Literal["none", "nf4"]


@dataclass(frozen=True, kw_only=True)
class CtcConfig:
    """The model of stage 1: an encoder with a CTC head."""

    encoder: EncoderConfig = ConformerConfig()  # noqa: RUF009 (frozen)
    """Encoder and its size; stage 2 has those of stage 1."""

    spec_augment: SpecAugmentConfig = SpecAugmentConfig()  # noqa: RUF009 (frozen)
    """How much of the features is hidden in training."""

    def build_speech(self, vocab_size: int) -> CtcModel:
        """Build the untrained model of stage 1, with `vocab_size` CTC classes, the blank included."""
        return self.encoder.build(self.spec_augment, vocab_size)

    def record(self) -> dict[str, Any]:
        """The description as plain values, which `from_record` reads."""
        return {field.name: _plain(field.type, getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        given = [field for field in fields(cls) if field.default is not MISSING]
        return {field.name: _plain(field.type, field.default) for field in given}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read the description in a checkpoint's settings; what an earlier version did not record gets its default.

        Raises:
            UserError: the values do not go together.
        """
        given = [field for field in fields(cls) if field.name in record]
        return cls(**{field.name: _read(field.type, record[field.name]) for field in given})


@dataclass(frozen=True, kw_only=True)
class SpeechLlmConfig(CtcConfig):
    """The model of stage 2: stage 1's model, a bridge, and a causal LLM with LoRA."""

    llm: str
    """Causal LM of Hugging Face: a folder, or a name on the hub."""

    llm_revision: str | None = None
    """Commit, branch or tag of a hub name; the newest by default. The commit is recorded, and resumed runs keep it."""

    llm_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen LLM's weights."""

    quantize: Quantization = "none"
    """Quantisation of the frozen LLM: `nf4` keeps its weights in 4 bits (QLoRA, arXiv 2305.14314) and computes in
    `llm_dtype`."""

    bridge: BridgeConfig = ProjectorConfig()  # noqa: RUF009 (frozen)
    """Bridge from the encoder's frames to audio embeddings."""

    lora_r: int = 8
    """Rank of LoRA; with 0 the LLM stays as it is."""

    lora_alpha: float = 16.0
    """Scale of LoRA, which is divided by its rank."""

    lora_dropout: float = 0.0
    """Probability of dropout before LoRA's matrices."""

    train_llm: bool = False
    """Train all of the LLM instead of LoRA (with `lora_r` 0); checkpoints then hold its weights."""

    freeze_encoder: bool = False
    """Keep encoder and CTC head as stage 1 left them, without SpecAugment, dropout or stage 1's loss. What then varies
    in training is text masking, LoRA's dropout and `data.augmentations`."""

    freeze_bridge: bool = False
    """Keep the bridge and the alignment's blank as they are, without the alignment's loss."""

    simulated_from: Literal["embeddings", "posteriors"] = "embeddings"
    """What the audio embeddings of a text without audio are simulated from: the LLM's input `embeddings` of its tokens,
    which needs an `alignment_weight`, or CTC `posteriors`, which become encoder frames (arXiv 2511.03310)."""

    simulated_wrong: float = 0.05
    """Share of the tokens of a text without audio whose simulated audio embeddings are those of another token; of CTC
    posteriors, of one that the head confuses with it, or of none."""

    instruction: str = ""
    """Text of the prompt before the audio, which may hold `{language}`."""

    text_masking: float = 0.0
    """Share of the input text tokens that training replaces by the LLM's unknown token (the paper's F)."""

    alignment_weight: float = 0.0
    """Weight of the direct alignment loss; 0 leaves the loss out."""

    alignment_classes: int = 1024
    """Tokens that stand for all those of the vocabulary that are not in the batch, drawn anew for the direct alignment
    in each step; with 0, or a vocabulary that has no more, every token stands for itself."""

    ctc_weight: float = 0.1
    """Weight of stage 1's loss, which keeps the CTC head in tune while the encoder moves; 0 leaves the loss out, and
    the head as it was."""

    def __post_init__(self) -> None:
        if self.train_llm and self.lora_r:
            raise UserError("train_llm trains every weight of the LLM: set lora_r to 0 with it, or leave it off")
        if self.train_llm and self.quantize != "none":
            raise UserError(
                f"quantize {self.quantize} keeps the LLM frozen: train it with LoRA, or set quantize to none"
            )
        if self.train_llm and self.llm_dtype != "float32":
            raise UserError(
                f"train_llm in {self.llm_dtype} would round its steps away: set llm_dtype to float32 with it"
            )
        if not 0 <= self.text_masking < 1:
            raise UserError(f"text_masking {self.text_masking} is a share of tokens: give at least 0 and less than 1")
        if self.alignment_classes < 0:
            raise UserError(
                f"alignment_classes {self.alignment_classes} is a number of tokens: give 0 for all, or more"
            )
        if not 0 <= self.simulated_wrong <= 1:
            raise UserError(f"simulated_wrong {self.simulated_wrong} is a share of tokens: give 0 to 1")
        Prompt(self.instruction)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the LLM's weights, and of the arithmetic where they are quantised."""
        return getattr(torch, self.llm_dtype)

    @property
    def trains_ctc_head(self) -> bool:
        return self.ctc_weight > 0 and not self.freeze_encoder


DESCRIPTIONS: dict[str, type[CtcConfig]] = {"ctc": CtcConfig, "llm": SpeechLlmConfig}
"""Description of a model by the stage of its checkpoint."""


def _plain(kind: Any, value: Any) -> Any:
    """A field's value as it is recorded."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    values = asdict(value)
    return {"class_path": type(value).__name__, "init_args": values} if isabstract(kind) else values


def _read(kind: Any, value: Any) -> Any:
    """A field's value from its record, or from the configuration that jsonargparse has parsed."""
    if isabstract(kind):
        name = value["class_path"].rpartition(".")[2]
        return next(each for each in kind.__subclasses__() if each.__name__ == name)(**value["init_args"])
    return kind(**value) if is_dataclass(kind) and isinstance(kind, type) else value
