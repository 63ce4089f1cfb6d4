"""Samples of utterances in several languages: how many of each, and that they are always the same."""

import numpy as np
import pytest

from speechllm_pl.data.sample import balanced_sample, equal_shares

LANGUAGES = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [700, 40, 260])).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "shares"), [(3, (1, 1, 1)), (90, (30, 30, 30)), (300, (130, 40, 130)), (700, (400, 40, 260))]
)
def test_languages_have_equal_shares_as_far_as_there_are_utterances(size: int, shares: tuple[int, ...]) -> None:
    sample = balanced_sample(LANGUAGES, size, seed=0)
    assert len(np.unique(sample)) == len(sample) == size
    counts = np.bincount(LANGUAGES[sample], minlength=4)
    assert counts.tolist() == [*shares[:2], 0, shares[2]]


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_those_of_giving_one_after_the_other_to_who_has_fewest(seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 12, size=6)
    for size in range(int(counts.sum()) + 1):
        given = np.zeros(6, int)
        for _ in range(size):
            given[min(np.flatnonzero(given < counts), key=lambda language: (given[language], language))] += 1
        assert sorted(equal_shares(counts, size)) == sorted(given)
        assert (equal_shares(counts, size) <= counts).all()


def test_a_sample_is_a_function_of_data_and_seed() -> None:
    once, again, other = (balanced_sample(LANGUAGES, 90, seed) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert len(np.intersect1d(once, other)) < 45
    assert (np.diff(once) > 0).all()
    assert once.max() > 900  # from all of the data, not its beginning
    assert once.min() < 100
