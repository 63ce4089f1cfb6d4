"""Samples that teach nothing."""

import numpy as np
import pytest
from tones import reason, tone, utterance, write_float

from data_prep.audio.checks import Rejected, check_samples


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        (np.zeros(0), "empty"),
        (tone(16000, seconds=0.05), "too short"),
        (np.zeros(16000), "silent"),
        (np.full(16000, 0.25), "silent"),
        (np.where(np.arange(16000) == 77, np.nan, 0.1), "NaN samples"),
        (np.where(np.arange(16000) == 77, np.inf, 0.1), "NaN samples"),
    ],
)
def test_samples_that_teach_nothing_are_rejected(tmp_path, samples, kind):
    with pytest.raises(Rejected, match=kind):
        check_samples(samples, 16000)
    assert reason(utterance(write_float(tmp_path / "a.wav", samples))).startswith(kind)


def test_quiet_speech_is_not_silence():
    check_samples(tone(16000) / 300, 16000)
