"""Speech encoders: waveforms in, frames and CTC logits out, by the interface of `models/ctc.py`.

`model.encoder` of a configuration names one of the descriptions below; a new one is added here.
"""

from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.encoders.pretrained import PretrainedEncoderConfig

__all__ = ["ConformerConfig", "PretrainedEncoderConfig"]
