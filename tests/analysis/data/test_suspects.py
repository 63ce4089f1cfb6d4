"""Outliers among utterances, against SciPy, and scores of a model that were made up."""

import math

import numpy as np
import pytest
from prepared_corpus import clean_corpus, write_corpus
from scipy.stats import median_abs_deviation

from speechllm_pl.analysis.data.letters import LetterModels
from speechllm_pl.analysis.data.listening import HeardRecording
from speechllm_pl.analysis.data.prepared_data import PreparedData, open_splits, read_through
from speechllm_pl.analysis.data.suspects import OUTLIER, Found, Usual, suspects
from speechllm_pl.analysis.data.transcript_scores import TranscriptScore


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return read_through(open_splits(write_corpus(tmp_path_factory.mktemp("clean") / "data", clean_corpus())))[0]


def judged(data: PreparedData, scores: dict[int, float], ahead: np.ndarray | None = None) -> dict[str, Found]:
    """The suspects of data that a model gave `scores` in nats a character."""
    heard = {
        number: HeardRecording(None, "", TranscriptScore(score * int(data.characters[number]), 50, ""))
        for number, score in scores.items()
    }
    ahead = np.full(len(data), -np.inf, np.float32) if ahead is None else ahead
    models = LetterModels()
    models.characters = {"de": 5000, "nl": 5000}
    return suspects(data, models, (ahead, np.ones(len(data), np.int16)), heard, keep=20)[0]


def test_what_is_usual_is_scipys_median_and_scaled_deviation():
    values = np.random.default_rng(0).normal(3, 2, size=501)
    usual = Usual.of(values)
    assert usual.median == np.median(values)
    assert usual.spread == pytest.approx(median_abs_deviation(values, scale="normal"), rel=1e-4)
    assert usual.deviations(values)[7] == pytest.approx((values[7] - usual.median) / usual.spread)


def test_a_transcript_that_the_model_does_not_find_is_suspected(data):
    random = np.random.default_rng(0)
    scores = dict(enumerate(random.normal(-0.5, 0.1, size=len(data))))
    scores[30] = -0.5 - 2 * OUTLIER * 0.1
    scores[100] = -0.5 - 3 * OUTLIER * 0.1
    scores[60] = -math.inf
    found = judged(data, scores)["ctc"]
    assert [suspect.utterance for suspect in found.worst] == [60, 100, 30]
    assert found.count == 3
    assert "more pieces than the recording has frames" in found.worst[0].reason
    assert judged(data, {number: score for number, score in scores.items() if number not in (30, 60, 100)})[
        "ctc"
    ] == Found(0, [])


def test_scores_are_compared_inside_a_language(data):
    own = {number: -0.5 if data.language_of(number) == "de" else -5.0 for number in range(len(data))}
    assert judged(data, own)["ctc"].count == 0  # a model may know one language better


def test_few_scores_do_not_tell_what_is_usual(data):
    assert judged(data, dict.fromkeys(range(10), -0.5) | {11: -50.0})["ctc"].count == 0


@pytest.mark.parametrize(("nats", "suspected"), [(9.0, False), (11.0, True)])
def test_another_language_must_be_clearly_ahead(data, nats, suspected):
    ahead = np.full(len(data), -20, np.float32)
    ahead[3] = nats
    found = judged(data, {}, ahead)["language"]
    assert found.count == suspected
    if suspected:
        assert found.worst[0].utterance == 3
        assert "labelled de, its letters are those of nl: 11 nats ahead" in found.worst[0].reason


def test_a_name_in_a_long_sentence_is_not_enough(data):
    ahead = np.full(len(data), -20, np.float32)
    ahead[3] = 12
    data.characters.flags.writeable = True
    kept, data.characters[3] = data.characters[3], 120
    assert judged(data, {}, ahead)["language"].count == 0
    data.characters[3] = kept
