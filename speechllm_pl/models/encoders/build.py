"""Build the encoder of a description."""

from speechllm_pl.models.config import ConformerConfig, CtcConfig
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.models.encoders.conformer import ConformerCtc

ENCODERS: dict[type, type[CtcModel]] = {ConformerConfig: ConformerCtc}
"""Encoders by the class of `CtcConfig.encoder`; each takes it, SpecAugment's settings and the number of classes."""


def encoder_class(config: CtcConfig) -> type[CtcModel]:
    return ENCODERS[type(config.encoder)]


def build_encoder(config: CtcConfig, vocab_size: int) -> CtcModel:
    """Build the untrained model of stage 1, with `vocab_size` CTC classes, the blank included."""
    return encoder_class(config)(config.encoder, config.spec_augment, vocab_size)
