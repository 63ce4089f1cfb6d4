"""What is common to the families of pretrained encoders: reading them, and the interface for `PretrainedCtc`."""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.own_vocabulary import CharacterTokenizer
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.ctc import CtcHead
from speechllm_pl.models.hugging_face import attention_projections, from_pretrained, quiet_transformers, repeated_layers

OFF = {
    "apply_spec_augment": False,
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}
"""Settings of encoders in training that would need other draws on each rank, or hide what SpecAugment hides here."""


@lru_cache
def shape_of(name: str, revision: str | None) -> transformers.PretrainedConfig:
    """Configuration of a pretrained encoder.

    Raises:
        UserError: neither a folder nor a name that can be loaded.
    """
    config = from_pretrained("encoder", transformers.AutoConfig, name, revision=revision)
    for part in (config, getattr(config, "encoder_config", config)):
        part.update({key: value for key, value in OFF.items() if hasattr(part, key)})
    return config


class Family(nn.Module, ABC):
    """A pretrained encoder that turns waveforms into frames as its own feature extractor and model do.

    Args:
        name, revision: folder or hub name, and its commit.
        with_head: keep the encoder's own CTC head, for `take_head`.

    Attributes:
        encoder: the model of transformers.
        dim: width of a frame.
        seconds_per_frame: from one frame to the next.
        augments_features: whether `forward` applies `hide` to the features that it reads.
        normalises: whether its feature extractor asks for normalised waveforms.
        own_head: a linear layer to CTC classes, or a convolution of single frames, and the blank among these.
    """

    augments_features = True
    normalises = False
    own_head: tuple[Any, int] | None = None
    encoder: Any
    dim: int
    seconds_per_frame: float

    @abstractmethod
    def __init__(self, name: str, revision: str | None, with_head: bool):
        super().__init__()

    @staticmethod
    @abstractmethod
    def frame_lengths(shape: Any, samples: Tensor) -> Tensor:
        """Numbers of frames for numbers of samples, by the encoder's configuration."""

    @abstractmethod
    def forward(self, waveforms: Padded, hide: nn.Module) -> Padded:
        """Compute `(B, T, dim)` frames, zero beyond their lengths, of `(B, N)` samples.

        Args:
            hide: SpecAugment for `(B, T, bins)` features.
        """

    @staticmethod
    def tokenizer(name: str, revision: str | None) -> CtcTokenizer:
        """Tokenizer of the encoder's own CTC head."""
        found = from_pretrained("encoder", transformers.AutoTokenizer, name, revision=revision)
        delimiter = getattr(found, "word_delimiter_token", None) or " "
        return CharacterTokenizer.of_vocabulary(found.get_vocab(), found.pad_token, delimiter, found.unk_token)

    def take_head(self) -> CtcHead | None:
        """The encoder's own CTC head, whose class 0 is the blank."""
        if self.own_head is None:
            return None
        (linear, blank), self.own_head = self.own_head, None
        classes, dim = linear.weight.shape[:2]
        head = CtcHead(dim, classes)
        order = [blank, *(number for number in range(classes) if number != blank)]
        with torch.no_grad():
            head.weight.copy_(linear.weight.flatten(1)[order])
            head.bias.copy_(linear.bias[order])
        return head

    @property
    def layers(self) -> list[nn.Module]:
        return repeated_layers(self.encoder)

    def lora_layers(self) -> list[str]:
        """Names of the layers that LoRA adapts: the attention's."""
        return sorted(attention_projections(self.encoder))

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that fine-tuning of the whole encoder trains."""
        return list(self.encoder.parameters())

    @property
    def is_meta(self) -> bool:
        return next(self.encoder.parameters()).is_meta


def read_model(auto_class: Any, name: str, revision: str | None, part: str = "") -> Any:
    """Read a model of transformers in fp32; on the meta device, its shape alone.

    Args:
        part: of a larger model, that part alone.

    Raises:
        UserError: it cannot be loaded, or the files lack some of its weights.
    """
    whole = shape_of(name, revision)
    shape = getattr(whole, f"{part}_config", whole)
    with quiet_transformers():
        if torch.empty(0).is_meta:
            return auto_class.from_config(shape, dtype=torch.float32)
        arguments = {"config": shape, "dtype": torch.float32, "output_loading_info": True}
        if shape is not whole:
            arguments["key_mapping"] = {rf"^(model\.)?{part}\.": ""}
        model, found = from_pretrained("encoder", auto_class, name, revision=revision, **arguments)
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"encoder {name} lacks {len(missing)} weights, {missing[0]} among them: give another one")
    return model
