"""Codecs: mu-law against its formula, and what all of them keep."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import soundfile
from made_utterances import RATE, changed, utterance

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import (
    Augmentation,
    CompressMp3,
    CompressMuLaw,
    CompressOpus,
    codecs,
)
from speechllm_pl.data.datamodule import SpeechDataModule


def mu_law(x: np.ndarray) -> np.ndarray:
    """The formula, sample by sample."""
    coded = np.floor((np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256) + 1) / 2 * 255 + 0.5)
    y = coded / 255 * 2 - 1
    return np.sign(y) * (np.exp(np.abs(y) * np.log(256)) - 1) / 255


def test_mu_law_is_the_formula() -> None:
    given = utterance("u")
    result = changed(CompressMuLaw(telephone=False), given)
    difference = np.abs(result.samples - mu_law(given.samples.astype(float)))
    assert np.mean(difference > 1e-5) < 1e-3  # samples between two levels may fall to either in float32
    assert len(np.unique(result.samples)) <= 256


def test_a_telephone_takes_away_what_is_above_4_khz() -> None:
    white = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32) * 0.1
    result = changed(CompressMuLaw(), utterance("u")._replace(samples=white))
    frequencies, power = scipy.signal.welch(result.samples, RATE)
    assert power[frequencies > 4300].sum() < 0.01 * power[frequencies < 3700].sum()
    assert len(result.samples) == len(white)


CODECS = (
    CompressOpus(kbps=(24, 24)),
    CompressOpus(kbps=(96, 96)),
    CompressMp3(quality=(2, 2)),
    CompressMp3(quality=(9, 9)),
    CompressMuLaw(),
)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("length", [48_037, 16_000, 801])
def test_codecs_keep_length_and_time(codec: Augmentation, length: int) -> None:
    given = utterance("u", length / RATE)
    coded = changed(codec, given).samples
    assert len(coded) == length
    lags = np.arange(1 - length, length)
    assert abs(lags[scipy.signal.correlate(coded, given.samples, method="fft").argmax()]) <= 2
    assert 0.8 < np.corrcoef(coded, given.samples)[0, 1] < 0.99999


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_codecs_do_not_clip_what_is_beyond_full_scale(codec: Augmentation) -> None:
    given = utterance("u")
    loud = given._replace(samples=given.samples * 10)
    coded = changed(codec, loud).samples
    assert np.abs(loud.samples).max() > 2
    assert np.abs(coded).max() == pytest.approx(np.abs(loud.samples).max(), rel=0.2)


def test_fewer_bits_change_more() -> None:
    given = utterance("u", 3.0)

    def error(codec: Augmentation) -> float:
        return float(np.mean((changed(codec, given).samples - given.samples) ** 2))

    assert error(CompressOpus(kbps=(8, 8))) > 3 * error(CompressOpus(kbps=(64, 64)))
    assert error(CompressMp3(quality=(9.9, 9.9))) > 3 * error(CompressMp3(quality=(2, 2)))


@pytest.mark.parametrize(("kind", "name"), [(CompressOpus, "Opus"), (CompressMp3, "MP3")])
def test_a_libsndfile_without_a_codec_is_told_at_the_start(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str
) -> None:
    kind().check()

    def refuse(*_: Any, **__: Any) -> None:
        raise soundfile.LibsndfileError(18)

    monkeypatch.setattr(soundfile, "write", refuse)
    with pytest.raises(UserError, match=rf"{kind.__name__} .*libsndfile .* cannot write {name}.*leave it out"):
        SpeechDataModule(str(corpus), augmentations=[kind()]).setup("fit")


def test_an_utterance_that_a_codec_cannot_take_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no frame")

    monkeypatch.setattr(codecs, "_coded", refuse)
    with caplog.at_level(logging.WARNING):
        result = changed(CompressOpus(), utterance("u"))
    np.testing.assert_array_equal(result.samples, utterance("u").samples)
    assert result.drawn == ()
    assert "CompressOpus left u as it was: no frame" in caplog.text
