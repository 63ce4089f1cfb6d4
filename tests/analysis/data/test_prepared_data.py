"""Columns of prepared data, against the utterances themselves."""

import numpy as np
import pytest
from prepared_corpus import SIZES, planted_corpus, write_corpus

from speechllm_pl.analysis.data.prepared_data import PreparedData, judged_by_letters, open_splits, read_through


@pytest.fixture(scope="module")
def corpus():
    return planted_corpus()


@pytest.fixture(scope="module")
def data(corpus, tmp_path_factory) -> PreparedData:
    return read_through(open_splits(write_corpus(tmp_path_factory.mktemp("planted") / "data", corpus)))[0]


def test_an_utterance_is_found_again_by_its_number(corpus, data):
    split = list(SIZES)
    ordered = sorted(corpus, key=lambda each: split.index(each.split))  # stable, as the manifests are written
    for number in (0, 50, 95, 96, 120, 143):
        assert data.cut(number).id == ordered[number].id
        assert data.split_of(number) == ordered[number].split


def test_the_second_look_is_the_same_in_any_portions(tmp_path, corpus):
    data, letters = read_through(open_splits(write_corpus(tmp_path / "data", corpus)))
    whole, best = judged_by_letters(data, letters, chunk=1000)
    parts, best_of_parts = judged_by_letters(data, letters, chunk=7)
    assert np.array_equal(whole, parts)
    assert np.array_equal(best, best_of_parts)
