"""`compile_encoder` changes how the encoder is computed, not what."""

import shutil

import pytest
import torch

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training.ctc_pretraining import CtcPretraining


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU: install it")
def test_compiled_blocks_give_the_same_frames_and_gradients(ctc_tokenizer: CtcTokenizer) -> None:
    encoder = ConformerConfig(dim=32, num_blocks=2, num_heads=2, ffn_dim=64, dropout=0.0)
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = CtcPretraining(ctc_tokenizer, encoder=encoder, compile_encoder=compiled)
        module.configure_model()
        blocks = module.speech.encoder.blocks
        assert all((block._compiled_call_impl is not None) == compiled for block in blocks)
        for samples in (16_000, 24_000):  # other lengths without compiling anew for each
            lengths = torch.tensor([samples, samples // 2])
            frames, _ = module.speech.eval().encode(Padded(torch.randn(2, samples), lengths))
            frames.square().sum().backward()
        found.append((frames.detach(), [p.grad for p in blocks.parameters()]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(*(gradients for _, gradients in found), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
