"""The alignment map and its monotonicity, against brute force and SciPy."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from speechllm_pl.analysis.run.alignment_map import AlignmentMap, alignment_map, draw, monotonicity


def test_each_cell_is_the_cosine_of_a_token_with_an_audio_embedding():
    generator = np.random.default_rng(0)
    audio, text = generator.normal(size=(7, 5)), generator.normal(size=(3, 5))

    found = alignment_map(torch.tensor(audio), torch.tensor(text), ["a", " b", "c"], 0.08)

    assert found.similarities.shape == (3, 7)
    for token in range(3):
        for column in range(7):
            lengths = np.sqrt((text[token] ** 2).sum()) * np.sqrt((audio[column] ** 2).sum())
            cosine = (text[token] * audio[column]).sum() / lengths
            assert found.similarities[token, column] == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_monotonicity_is_scipys_spearman_correlation_ties_included(seed):
    similarities = np.random.default_rng(seed).normal(size=(12, 6))  # 12 tokens on 6 columns: ties are certain

    expected = spearmanr(np.arange(12), similarities.argmax(axis=1)).statistic

    assert monotonicity(similarities) == pytest.approx(expected)


def test_monotonicity_of_a_diagonal_is_one_and_of_its_mirror_image_minus_one():
    assert monotonicity(np.eye(6)) == pytest.approx(1)
    assert monotonicity(np.eye(6)[::-1]) == pytest.approx(-1)


def test_monotonicity_follows_order_and_not_distance():
    similarities = np.zeros((3, 100))
    similarities[[0, 1, 2], [0, 1, 99]] = 1
    assert monotonicity(similarities) == pytest.approx(1)


@pytest.mark.parametrize("similarities", [np.ones((1, 4)), np.tile(np.arange(4), (5, 1))])
def test_monotonicity_without_an_order_to_speak_of_is_nan(similarities):
    assert np.isnan(monotonicity(similarities))


def test_the_heat_map_has_seconds_to_the_right_and_token_strings_downwards():
    axis = Figure().subplots()
    found = AlignmentMap(np.eye(3, 10), ["six", "ty", " $two$"], seconds_per_embedding=0.24)

    image = draw(found, axis)

    np.testing.assert_array_equal(image.get_array(), found.similarities)
    left, right, bottom, top = image.get_extent()
    assert (left, right) == (0, pytest.approx(2.4))
    assert bottom > top  # the first token is on top
    assert [label.get_text() for label in axis.get_yticklabels()] == ["six", "-ty", "$two$"]
    assert "seconds" in axis.get_xlabel()
    (dots,) = axis.get_lines()
    np.testing.assert_allclose(dots.get_xdata(), [0.12, 0.36, 0.60])  # the middle of each best column
    axis.figure.canvas.draw()  # a text with dollar signs is no formula
