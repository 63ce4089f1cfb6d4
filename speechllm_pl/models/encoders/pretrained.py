"""Pretrained encoders of Hugging Face: frozen, with LoRA, or trained, below a CTC head of their own or of stage 1.

A `Family` knows how waveforms become frames. Above these frames stand, for an encoder without a CTC
head, a layer that stacks a few of them, conformer blocks and a new head.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self

import peft
import torch
import transformers
from torch import Tensor, nn

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.masks import length_mask, stacked
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.ctc import CtcHead, CtcModel, EncoderConfig
from speechllm_pl.models.encoders.conformer import ConformerBlock, ConformerConfig, Rotary
from speechllm_pl.models.encoders.family import Family, shape_of
from speechllm_pl.models.encoders.granite import Granite
from speechllm_pl.models.encoders.spectral import Parakeet, Wav2Vec2Bert
from speechllm_pl.models.encoders.waveform import Waveform, Wavlm
from speechllm_pl.models.encoders.whisper import Whisper
from speechllm_pl.models.features import SpecAugment, SpecAugmentConfig
from speechllm_pl.models.hugging_face import commit_of, names_of_linear_layers
from speechllm_pl.storage.pretrained_files import weights_digest

FAMILIES: dict[str, type[Family]] = {
    "whisper": Whisper,
    "wav2vec2": Waveform,
    "hubert": Waveform,
    "wavlm": Wavlm,
    "wav2vec2-bert": Wav2Vec2Bert,
    "parakeet_ctc": Parakeet,
    "parakeet_tdt": Parakeet,
    "parakeet_rnnt": Parakeet,
    "parakeet_encoder": Parakeet,
    "granite_speech": Granite,
    "granite_speech_encoder": Granite,
}
"""Families by the `model_type` of a configuration."""

Adapt = Literal["frozen", "lora", "all"]
CHANNELS_PER_HEAD = 64
FRAMES_VERSION = 1
"""To be raised when a family makes other frames of the same weights and audio than before: none cached is used then."""

BINS = 80
"""Number of filter bank bins that SpecAugment's widths are meant for."""


@dataclass(frozen=True)
class PretrainedEncoderConfig(EncoderConfig):
    """Pretrained encoder of Hugging Face: Whisper's, or any with a class of AutoModelForCTC or AutoModel.

    Attributes:
        name: Folder, or name on the hub.
        revision: Commit, branch or tag of a hub name; the newest by default. The commit is recorded.
        adapt: What is trained of it. A frozen one is never in training mode, and SpecAugment hides parts of its frames.
        lora_r: Rank of LoRA on its attention, with `adapt: lora`.
        lora_alpha: Scale of LoRA, which is divided by its rank.
        lr_factor: Learning rate of the pretrained weights, or of LoRA, relative to that of the parts above them.
        head: `own` keeps the encoder's CTC head and vocabulary, `new` trains a head for the data's vocabulary, and
            `auto` keeps a head where there is one.
        head_blocks: Number of conformer blocks between the encoder and a new head.
        stride: Number of the encoder's frames that are stacked into one below a new head.
        dropout: Probability of dropout in these blocks.
    """

    name: str
    revision: str | None = None
    adapt: Adapt = "frozen"
    lora_r: int = 8
    lora_alpha: float = 16.0
    lr_factor: float = 0.1
    head: Literal["auto", "own", "new"] = "auto"
    head_blocks: int = 2
    stride: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.stride < 1 or self.head_blocks < 0:
            raise UserError(f"encoder: stride {self.stride} must be at least 1, head_blocks {self.head_blocks} 0")
        if self.adapt == "lora" and self.lora_r < 1:
            raise UserError("encoder: adapt lora needs a lora_r of at least 1; adapt frozen trains nothing of it")

    @property
    def shape(self) -> transformers.PretrainedConfig:
        return shape_of(self.name, self.revision)

    @property
    def family(self) -> type[Family]:
        """How its kind of encoder is used.

        Raises:
            UserError: there is no such encoder, or it is of an unknown kind.
        """
        kind = self.shape.model_type
        if kind not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise UserError(f"encoder {self.name} is of model type {kind}, and these are known: {known}")
        return FAMILIES[kind]

    @property
    def is_pretrained(self) -> bool:
        return True

    @property
    def has_own_head(self) -> bool:
        has_head = any(name.endswith("ForCTC") for name in self.shape.architectures or ())
        return has_head and self.head != "new"

    def own_tokenizer(self) -> CtcTokenizer | None:
        return self.family.tokenizer(self.name, self.revision) if self.has_own_head else None

    def pinned(self) -> Self:
        return replace(self, revision=commit_of("encoder", self.name, self.revision))

    def build(self, spec_augment: SpecAugmentConfig, vocab_size: int) -> "PretrainedCtc":
        """Build the model of stage 1 with the pretrained weights, or without any on the meta device."""
        if self.head == "own" and not self.has_own_head:
            raise UserError(f"encoder {self.name} has no CTC head of its own: set model.encoder.head to new")
        return PretrainedCtc(self, spec_augment, vocab_size)

    def frame_lengths(self, samples: Tensor) -> Tensor:
        frames = self.family.frame_lengths(self.shape, samples)
        return frames if self.has_own_head else stacked(frames, self.stride)


class PretrainedCtc(CtcModel):
    """Pretrained encoder, SpecAugment, blocks for a new CTC head, and the head.

    With a frozen encoder SpecAugment hides parts of its frames, so that these are the same each time; otherwise parts
    of the features that it reads.
    """

    def __init__(self, config: PretrainedEncoderConfig, spec_augment: SpecAugmentConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.pretrained = config.family(config.name, config.revision, with_head=config.has_own_head)
        self.dim, self.seconds_per_frame = self.pretrained.dim, self.pretrained.seconds_per_frame
        self.digest = "" if self.pretrained.is_meta else weights_digest(config.name, config.revision)
        self.pretrained.requires_grad_(False).train(config.adapt != "frozen")  # it comes in evaluation mode
        if config.adapt == "all":
            for parameter in self.pretrained.trainable():
                parameter.requires_grad_(True)
        elif config.adapt == "lora":
            add_encoder_lora(self.pretrained, config.lora_r, config.lora_alpha)
        own = self.pretrained.take_head()
        self.adapter = None if own else HeadBlocks(config, self.dim)
        if self.adapter is not None:
            self.seconds_per_frame *= config.stride
        self.head = own or CtcHead(self.dim, vocab_size)
        augmented = _of_frames(spec_augment, self.dim, self.pretrained.seconds_per_frame)
        on_features = config.adapt != "frozen" and self.pretrained.augments_features
        self.augment = SpecAugment(spec_augment if on_features else augmented)
        self.augments_frames = not on_features

    def train(self, mode: bool = True) -> "PretrainedCtc":
        super().train(mode)
        if self.config.adapt == "frozen":
            self.pretrained.eval()
        return self

    @property
    def layers(self) -> nn.ModuleList:
        return nn.ModuleList([*self.pretrained.layers, *(self.adapter.blocks if self.adapter else ())])

    def encode(self, waveforms: Padded) -> Padded:
        if waveforms.values.dim() == 3:  # cached frames
            frames = waveforms
        elif (frames := self.frozen_frames(waveforms)) is None:
            frames = self.pretrained(waveforms, nn.Identity() if self.augments_frames else self.augment)
        hide = self.augment if self.augments_frames else nn.Identity()
        return self.adapter(frames, hide) if self.adapter else Padded(hide(frames.values), frames.lengths)

    def frozen_frames(self, waveforms: Padded) -> Padded | None:
        if self.config.adapt != "frozen":
            return None
        with torch.no_grad():
            return self.pretrained(waveforms, nn.Identity())

    @property
    def frozen_digest(self) -> str:
        if self.config.adapt != "frozen":
            return ""
        weights = weights_digest(self.config.name, self.config.revision, whole=True)
        told = FRAMES_VERSION, weights, self.pretrained.normalises
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def is_saved(self, name: str) -> bool:
        """Whether checkpoints hold this entry: all but those of a pretrained encoder that is not trained itself."""
        inside = name.startswith("pretrained.")
        return not inside or self.config.adapt == "all" or (self.config.adapt == "lora" and "lora_" in name)

    def parameter_lr_factors(self) -> Iterator[tuple[nn.Parameter, float]]:
        return ((p, self.config.lr_factor) for p in self.pretrained.parameters() if p.requires_grad)


class HeadBlocks(nn.Module):
    """Normalisation, stacking of `stride` frames and conformer blocks."""

    def __init__(self, config: PretrainedEncoderConfig, dim: int):
        super().__init__()
        heads = next(n for n in range(max(1, dim // CHANNELS_PER_HEAD), 0, -1) if dim % (2 * n) == 0)
        size = ConformerConfig(dim=dim, num_heads=heads, ffn_dim=4 * dim, num_blocks=1, dropout=config.dropout)
        self.stride = config.stride
        self.input_norm = nn.LayerNorm(dim)
        self.stack = nn.Linear(dim * config.stride, dim)
        self.rotary = Rotary(dim // heads)
        self.blocks = nn.ModuleList(ConformerBlock(size) for _ in range(config.head_blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, frames: Padded, hide: nn.Module) -> Padded:
        """Encode `(B, T, dim)` frames as `(B, T / stride, dim)`, zero beyond their lengths.

        Args:
            hide: SpecAugment for the normalised frames, whose mean is zero.
        """
        x = hide(self.input_norm(frames.values)) * length_mask(frames.lengths, frames.values.shape[1])[:, :, None]
        x = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % self.stride))
        x = self.stack(x.unflatten(1, (-1, self.stride)).flatten(2))  # (B, T / stride, dim)
        lengths = stacked(frames.lengths, self.stride)
        mask, rotation = length_mask(lengths, x.shape[1]), self.rotary(x.shape[1], x.device)
        for block in self.blocks:
            x = block(x, mask, rotation)
        return Padded(self.norm(x) * mask[:, :, None], lengths)


def add_encoder_lora(family: Family, r: int, alpha: float) -> None:
    """Put LoRA of rank `r` on linear layers of the encoder, in place; nothing else is trained.

    Raises:
        UserError: there are none.
    """
    encoder, targets = family.encoder, family.lora_layers()
    if not targets:
        raise UserError(
            f"LoRA: {type(encoder).__name__} has no linear layers in an attention of repeated layers; its linear layers"
            f" are {names_of_linear_layers(encoder)}. Set model.encoder.adapt to frozen or all"
        )
    lora = peft.LoraConfig(r=r, lora_alpha=int(alpha) if alpha == int(alpha) else alpha, target_modules=targets)  # pyright: ignore[reportArgumentType]
    peft.inject_adapter_in_model(lora, encoder)


def _of_frames(config: SpecAugmentConfig, dim: int, seconds_per_frame: float) -> SpecAugmentConfig:
    """The same shares hidden of `dim` channels and of frames of another length than 10 ms."""
    time_width = max(1, round(config.time_width * 0.01 / seconds_per_frame))
    return replace(config, time_width=time_width, freq_width=max(1, round(config.freq_width * dim / BINS)))
