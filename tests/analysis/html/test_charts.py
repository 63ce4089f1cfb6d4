"""Drawings that take colours, typeface and ids from the page around them."""

import re

import numpy as np
import pytest
from parsed_page import Page

from speechllm_pl.analysis.html.charts import CTC, VARIABLES, inline_svg, running_mean


def test_a_drawing_is_a_labelled_element_in_the_colours_of_the_page():
    svg = inline_svg(lambda figure: figure.subplots().plot([1, 2], color=CTC), size=(2, 2), name="it", label='"a" <b>')
    (element,) = Page(svg).all("svg")
    assert element["aria-label"] == '"a" <b>'
    assert "var(--ctc)" in svg
    assert not any(placeholder in svg for placeholder in VARIABLES)
    assert "<style" not in svg
    assert "font-family" not in svg
    assert all(id_.startswith("it-") for id_ in re.findall(r'\bid="([^"]+)"', svg))


@pytest.mark.parametrize("length", [1, 39, 40, 200])
def test_a_running_mean_is_over_a_twentieth_of_the_curve(length):
    values = np.random.default_rng(0).normal(size=length)
    reach = length // 40
    means = [np.mean([values[j] for j in range(length) if abs(i - j) <= reach]) for i in range(length)]
    assert np.allclose(running_mean(values), means)
