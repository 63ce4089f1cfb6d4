"""Which class a description's encoder is of."""

from speechllm_pl.models.config import ConformerConfig, CtcConfig
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.models.encoders.conformer import ConformerCtc

ENCODERS: dict[type, type[CtcModel]] = {ConformerConfig: ConformerCtc}
"""By the class of `CtcConfig.encoder`; each takes that, SpecAugment's settings and the number of CTC classes."""


def encoder_class(config: CtcConfig) -> type[CtcModel]:
    return ENCODERS[type(config.encoder)]


def build_encoder(config: CtcConfig, vocab_size: int) -> CtcModel:
    """The untrained model of stage 1, with `vocab_size` CTC classes, the blank included."""
    return encoder_class(config)(config.encoder, config.spec_augment, vocab_size)
