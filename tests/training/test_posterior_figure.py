"""The figure of CTC posteriors that TensorBoard shows of each validation."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from matplotlib import pyplot as plt

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.padded import Padded
from speechllm_pl.data.batch import Batch
from speechllm_pl.training.callbacks import posterior_figure

FRAMES = 40


class Speech:
    """Hears the classes 1 and 2 in turn, in frames of 60 ms."""

    seconds_per_frame = 0.06

    def __call__(self, waveforms: Padded) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.zeros(1, FRAMES, 5)
        logits[0, range(FRAMES), [1, 2] * (FRAMES // 2)] = 9.0
        return logits, torch.tensor([FRAMES])


def test_its_frames_are_those_of_the_encoder(ctc_tokenizer: CtcTokenizer) -> None:
    samples = torch.randn(2, 38_400, generator=torch.Generator().manual_seed(0))
    batch = Batch(samples, torch.tensor([38_400, 30_000]), ["a", "b"], ["en", "en"], ["one", "two"], [])
    module = cast(Any, SimpleNamespace(speech=Speech(), tokenizer=ctc_tokenizer))
    figure = posterior_figure(module, batch)
    above, below = figure.axes
    plt.close(figure)
    assert (above.get_xlabel(), below.get_xlabel()) == ("10 ms frames", "60 ms frames")
    assert above.get_title() == "one: a"
    assert [label.get_text() for label in below.get_yticklabels()] == list(ctc_tokenizer.pieces[1:3])
    shown = below.images[0].get_array()
    assert shown is not None
    assert shown.shape == (2, FRAMES)
    assert shown[0, 0] == pytest.approx(shown[1, 1])
    assert shown[0, 0] > 0.9 > 0.1 > shown[0, 1]
