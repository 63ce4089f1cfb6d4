"""The model of stage 1."""

import torch

from speechllm_pl.models.config import CtcConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig


def test_logits_are_the_fp32_product_of_the_frames_where_autocast_computes_in_bf16(
    small_encoder: ConformerConfig,
) -> None:
    torch.manual_seed(0)
    model = CtcConfig(encoder=small_encoder).build_speech(20).eval()
    waveforms, lengths = 0.1 * torch.randn(2, 12_000), torch.tensor([12_000, 7_000])
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(waveforms, lengths)
        encoded, _ = model.encode(waveforms, lengths)
        assert (encoded @ encoded.mT).dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    expected = encoded.double() @ model.head.weight.double().T + model.head.bias.double()
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
