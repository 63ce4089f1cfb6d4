"""Encoders that read waveforms: wav2vec 2.0 (arXiv 2006.11477), HuBERT (2106.07447) and WavLM (2110.13900).

Their convolutions on the waveform are never trained, as is usual. Those of the base sizes normalise each channel over
all of time, padding included; here over real frames, so that an utterance is heard alike alone and in a batch.
"""

import math
import warnings
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.masks import convolved, length_mask
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.encoders.family import Family, read_model, shape_of
from speechllm_pl.models.encoders.masked_layers import RealFramesNorm
from speechllm_pl.models.hugging_face import from_pretrained

LEAST_SAMPLES = 400
"""Samples of the shortest input: what one frame sees."""


class Waveform(Family):
    """wav2vec 2.0, HuBERT or WavLM, with or without a CTC head."""

    augments_features = False

    def __init__(self, name: str, revision: str | None, with_head: bool):
        super().__init__(name, revision, with_head)
        shape: Any = shape_of(name, revision)
        if getattr(shape, "add_adapter", False) or getattr(shape, "adapter_attn_dim", None):
            raise UserError(f"encoder {name} has an adapter for another length or language: give one without")
        auto_class = transformers.AutoModelForCTC if with_head else transformers.AutoModel
        model = read_model(auto_class, name, revision)
        self.encoder = model.base_model if with_head else model
        self.own_head = (model.lm_head, shape.pad_token_id) if with_head else None
        self.dim = shape.hidden_size
        self.seconds_per_frame = math.prod(shape.conv_stride) / SAMPLING_RATE
        extractor = from_pretrained("encoder", transformers.AutoFeatureExtractor, name, revision=revision)
        self.normalises = extractor.do_normalize
        self.encoder.feature_extractor._freeze_parameters()
        first = self.encoder.feature_extractor.conv_layers[0]
        if shape.feat_extract_norm == "group":
            whole = first.layer_norm
            first.layer_norm = RealFramesNorm(whole.num_groups, whole.num_channels, whole.eps)
            first.layer_norm.weight, first.layer_norm.bias = whole.weight, whole.bias

    @staticmethod
    def frame_lengths(shape: Any, samples: Tensor) -> Tensor:
        return convolved(samples, shape.conv_kernel, shape.conv_stride)

    def trainable(self) -> list[nn.Parameter]:
        fixed = {id(parameter) for parameter in self.encoder.feature_extractor.parameters()}
        return [parameter for parameter in self.encoder.parameters() if id(parameter) not in fixed]

    def forward(self, waveforms: Padded, hide: nn.Module) -> Padded:
        shape, (samples, lengths) = self.encoder.config, waveforms
        samples = F.pad(samples.float(), (0, max(0, LEAST_SAMPLES - samples.shape[1])))
        if self.normalises:
            samples = _normalised(samples, lengths)
        norm = getattr(self.encoder.feature_extractor.conv_layers[0], "layer_norm", None)
        if isinstance(norm, RealFramesNorm):
            norm.frames = convolved(lengths, shape.conv_kernel[:1], shape.conv_stride[:1])
        with torch.no_grad():
            features = self.encoder.feature_extractor(samples).transpose(1, 2)  # (B, T, channels)
        frames = convolved(lengths, shape.conv_kernel, shape.conv_stride)
        mask = length_mask(frames, features.shape[1])
        projected = self.encoder.feature_projection(features)
        projected = projected[0] if isinstance(projected, tuple) else projected
        projected = projected * mask[:, :, None]
        encoded = self.encoder.encoder(projected, attention_mask=mask).last_hidden_state
        return Padded(encoded * mask[:, :, None], frames)


class Wavlm(Waveform):
    """WavLM, whose attention reads its matrices without their layers, so that LoRA has its place beside it."""

    def forward(self, waveforms: Padded, hide: nn.Module) -> Padded:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*mismatched key_padding_mask")  # transformers' use of torch
            return super().forward(waveforms, hide)

    def lora_layers(self) -> list[str]:
        return ["feed_forward.intermediate_dense", "feed_forward.output_dense"]


def _normalised(samples: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit variance of each of the `(B, N)` waveforms, and zero beyond their lengths."""
    mask, count = length_mask(lengths, samples.shape[1]), lengths.clamp(min=1)[:, None]
    centred = (samples - samples.sum(1, keepdim=True) / count) * mask
    return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
