"""Channels whose mean loses the speech."""

import numpy as np
import pytest

from speechllm_pl.core.audio.channels import channels_cancel

NOISE = np.random.default_rng(0).standard_normal((3, 4000)).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "cancel"),
    [
        (np.stack([NOISE[0], -NOISE[0]]), True),
        (np.stack([NOISE[0], -NOISE[0] + 0.01 * NOISE[1]]), True),
        (np.stack([NOISE[0], -0.8 * NOISE[0]]), False),  # a tenth of the amplitude is left
        (NOISE[:2], False),
        (np.stack([NOISE[0], NOISE[0]]), False),
        (np.stack([NOISE[0], 0 * NOISE[0]]), False),
        (NOISE[:1], False),
        (np.zeros((2, 100), np.float32), False),  # silence is told elsewhere
        (np.zeros((2, 0), np.float32), False),
    ],
)
def test_only_opposite_phases_cancel(samples: np.ndarray, cancel: bool) -> None:
    assert channels_cancel(samples) == cancel
