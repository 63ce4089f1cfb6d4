"""The conformer of Granite speech 3 (arXiv 2505.08699), read without the projector and the LLM that it comes with.

Transformers gives it no mask: its attention, in blocks of 4 s, and its convolutions hear padding there, and silence
here. It was trained with CTC on characters that its files do not tell, so that head is not used.
"""

from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechConformerAttention

from speechllm_pl.core.audio.units import FFT, HOP, SAMPLING_RATE, WINDOW
from speechllm_pl.core.masks import length_mask
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.encoders.masked_layers import RealFramesConv, store_statistics
from speechllm_pl.models.encoders.mel_features import GraniteFeatures
from speechllm_pl.models.encoders.spectral import Spectral

transformers.AutoModel.register(
    transformers.GraniteSpeechEncoderConfig, transformers.GraniteSpeechCTCEncoder, exist_ok=True
)


class RealFramesAttention(GraniteSpeechConformerAttention):
    """Attention in blocks of frames to the real ones alone; set `frames` before.

    Attributes:
        frames: `(B,)` real frames.
    """

    frames: Tensor

    def forward(self, hidden_states: Tensor, attention_dists: Tensor) -> Tensor:
        """Attend within blocks of `(B, T, dim)` frames; `attention_dists` names the embedding of each distance."""
        rows, length, _ = hidden_states.shape
        missing = -length % self.context_size
        x = F.pad(self.pre_norm(hidden_states), (0, 0, 0, missing))
        query, key, value = (
            part.reshape(-1, self.context_size, self.num_heads, self.dim_head).transpose(1, 2)
            for part in (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1))
        )  # (B * blocks, heads, context, dim_head)
        bias = torch.einsum("bhqd,qkd->bhqk", query, self.rel_pos_emb(attention_dists)) * self.scale
        real = length_mask(self.frames, length + missing).reshape(-1, 1, 1, self.context_size)
        bias = bias.masked_fill(~real, torch.finfo(bias.dtype).min)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        attended = attended.transpose(1, 2).reshape(rows, length + missing, -1)[:, :length]
        return self.dropout(self.to_out(attended))


class Granite(Spectral):
    """The encoder of a Granite speech model, or saved by itself."""

    part = "encoder"
    stack = 2
    extraction: ClassVar = {
        "melspec_kwargs": {
            "sample_rate": SAMPLING_RATE,
            "n_fft": FFT,
            "win_length": WINDOW,
            "hop_length": HOP,
            "n_mels": 80,
        }
    }
    seconds_per_frame = stack * HOP / SAMPLING_RATE

    def __init__(self, name: str, revision: str | None, with_head: bool):
        super().__init__(name, revision, with_head)
        self.features = GraniteFeatures(80)
        self.dim = self.encoder.config.hidden_dim
        store_statistics(self.encoder)
        for block in self.encoder.layers:
            block.attn.__class__ = RealFramesAttention
            block.conv.depth_conv.conv.__class__ = RealFramesConv

    @staticmethod
    def frame_lengths(shape: Any, samples: Tensor) -> Tensor:
        return GraniteFeatures.num_frames(samples) // Granite.stack

    def encode(self, features: Padded) -> Tensor:
        for block in self.encoder.layers:
            convolution = block.conv.depth_conv
            block.attn.frames, convolution.conv.frames = features.lengths, features.lengths + convolution.padding[0]
        return self.encoder(features.values).last_hidden_state
