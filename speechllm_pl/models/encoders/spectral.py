"""Encoders that read log-mel features and a mask of the real ones: wav2vec2-bert (2312.05187), Parakeet (2305.05084).

Padding is masked in their attention and convolutions by transformers; where it is not, it is silenced here.
"""

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import transformers
from torch import Tensor, nn

from speechllm_pl.core.audio.units import FFT, HOP, SAMPLING_RATE, WINDOW
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.masks import convolved, length_mask
from speechllm_pl.core.own_vocabulary import SubwordTokenizer
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.encoders.family import Family, read_model, shape_of
from speechllm_pl.models.encoders.masked_layers import RealFramesConv, store_statistics
from speechllm_pl.models.encoders.mel_features import PREEMPHASIS, KaldiFeatures, MelFeatures, NemoFeatures
from speechllm_pl.models.hugging_face import from_pretrained


class Spectral(Family):
    """An encoder of transformers, alone or in a model with other parts.

    Attributes:
        part: the encoder's name in a model of which it is read alone.
        inside: its name in a model that is read whole.
        head: the CTC head's name in such a model.
        extraction: what the feature extractor has to be set to.
        features: what this feature extractor does.
        stack: number of its frames that are put together before the encoder; a last incomplete stack is left out.
    """

    part: ClassVar[str] = ""
    inside: ClassVar[str] = ""
    head: ClassVar[str] = ""
    extraction: ClassVar[dict[str, Any]]
    stack: ClassVar[int] = 1
    features: MelFeatures

    def __init__(self, name: str, revision: str | None, with_head: bool):
        super().__init__(name, revision, with_head)
        extractor = from_pretrained("encoder", transformers.AutoFeatureExtractor, name, revision=revision)
        for setting, known in self.extraction.items():
            if (found := getattr(extractor, setting, None)) != known:
                raise UserError(f"encoder {name}: {setting} of its features is {found}, and only {known} is known")
        auto_class = transformers.AutoModelForCTC if with_head else transformers.AutoModel
        model = read_model(auto_class, name, revision, self.part)
        self.encoder = getattr(model, self.inside, model)
        if with_head:
            self.own_head = getattr(model, self.head), model.config.pad_token_id

    def forward(self, waveforms: Padded, hide: nn.Module) -> Padded:
        features, lengths = self.features(waveforms)
        features = hide(features)[:, : features.shape[1] // self.stack * self.stack]
        features = features.unflatten(1, (-1, self.stack)).flatten(2)  # (B, T / stack, bins * stack)
        encoded = self.encode(Padded(features, lengths // self.stack))
        frames = self.frame_lengths(self.encoder.config, waveforms.lengths)
        return Padded(encoded * length_mask(frames, encoded.shape[1])[:, :, None], frames)

    def encode(self, features: Padded) -> Tensor:
        """Compute `(B, T, dim)` frames, which have any value beyond the real ones."""
        mask = length_mask(features.lengths, features.values.shape[1])
        return self.encoder(features.values, attention_mask=mask).last_hidden_state


class Wav2Vec2Bert(Spectral):
    """wav2vec2-bert, with or without its adapter, which shortens the frames and whose convolutions hear padding."""

    inside, head = "wav2vec2_bert", "lm_head"
    stack = 2
    extraction: ClassVar = {"stride": stack}

    def __init__(self, name: str, revision: str | None, with_head: bool):
        super().__init__(name, revision, with_head)
        shape: Any = shape_of(name, revision)
        self.features = KaldiFeatures(shape.feature_projection_input_dim // self.stack)
        self.dim = shape.output_hidden_size if shape.add_adapter else shape.hidden_size
        self.seconds_per_frame = math.prod([self.stack, *_strides(shape)]) * HOP / SAMPLING_RATE
        for layer in self._adapter:
            layer.residual_conv.__class__ = layer.self_attn_conv.__class__ = RealFramesConv

    @staticmethod
    def frame_lengths(shape: Any, samples: Tensor) -> Tensor:
        return _shortened(shape, KaldiFeatures.num_frames(samples) // Wav2Vec2Bert.stack, _strides(shape))

    @property
    def _adapter(self) -> Iterable[Any]:
        return self.encoder.adapter.layers if self.encoder.adapter else ()

    def encode(self, features: Padded) -> Tensor:
        lengths, shape = features.lengths, self.encoder.config
        for layer in self._adapter:
            layer.residual_conv.frames = layer.self_attn_conv.frames = lengths
            lengths = _shortened(shape, lengths, [shape.adapter_stride])
        return super().encode(features)


class Parakeet(Spectral):
    """The Fast Conformer of Parakeet's CTC, TDT and RNN-T models, of which CTC's head alone is used."""

    inside, head = "encoder", "ctc_head"
    extraction: ClassVar = {"hop_length": HOP, "win_length": WINDOW, "n_fft": FFT, "preemphasis": PREEMPHASIS}

    def __init__(self, name: str, revision: str | None, with_head: bool):
        super().__init__(name, revision, with_head)
        shape = self.encoder.config
        self.features = NemoFeatures(shape.num_mel_bins)
        self.dim = shape.hidden_size
        self.seconds_per_frame = shape.subsampling_factor * HOP / SAMPLING_RATE
        store_statistics(self.encoder)

    @staticmethod
    def frame_lengths(shape: Any, samples: Tensor) -> Tensor:
        shape = getattr(shape, "encoder_config", shape)
        layers, kernel = int(math.log2(shape.subsampling_factor)), shape.subsampling_conv_kernel_size
        strides = [shape.subsampling_conv_stride] * layers
        return convolved(NemoFeatures.num_frames(samples), [kernel] * layers, strides, (kernel - 1) // 2)

    @staticmethod
    def tokenizer(name: str, revision: str | None) -> SubwordTokenizer:
        found = from_pretrained("encoder", transformers.AutoTokenizer, name, revision=revision)
        return SubwordTokenizer.of_tokenizer(found.backend_tokenizer.to_str(), found.pad_token, found.unk_token)


def _strides(shape: Any) -> list[int]:
    """Strides of the layers of a wav2vec2-bert's adapter."""
    return [shape.adapter_stride] * shape.num_adapter_layers if shape.add_adapter else []


def _shortened(shape: Any, frames: Tensor, strides: list[int]) -> Tensor:
    """Numbers of frames after layers of a wav2vec2-bert's adapter."""
    return convolved(frames, [shape.adapter_kernel_size] * len(strides), strides, shape.adapter_stride // 2)
