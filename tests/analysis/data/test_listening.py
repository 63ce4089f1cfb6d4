"""The sample of recordings that is decoded."""

from collections import Counter

import numpy as np
import pytest
from prepared_corpus import LANGUAGES, planted_corpus, write_corpus

from speechllm_pl.analysis.data.listening import drawn
from speechllm_pl.analysis.data.prepared_data import PreparedData, open_splits, read_through


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return read_through(open_splits(write_corpus(tmp_path_factory.mktemp("planted") / "data", planted_corpus())))[0]


def test_a_sample_has_as_many_of_each_group_or_all_that_it_has(data):
    chosen = drawn(data, 80, seed=3)
    assert len(set(chosen.tolist())) == 80
    groups = Counter((data.split_of(int(u)), data.language_of(int(u))) for u in chosen)
    assert groups == {
        ("train", "de"): 16,
        ("train", "nl"): 16,
        **{(split, language): 12 for split in ("dev", "test") for language in LANGUAGES},
    }
    assert np.array_equal(chosen, drawn(data, 80, seed=3))
    assert not np.array_equal(chosen, drawn(data, 80, seed=4))
    assert np.array_equal(drawn(data, 1000, seed=0), np.arange(len(data)))
