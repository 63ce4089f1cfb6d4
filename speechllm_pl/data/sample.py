"""A part of a set of utterances that stands for the whole in every language, the same one each time."""

import numpy as np


def balanced_sample(languages: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Equally many utterances of each language, as far as there are; more of the others where one has fewer.

    Args:
        languages: `(N,)` a small number for each utterance's.
        size: how many in all; N is at least as large.
        seed: of the choice, which is a function of it and of `languages`.

    Returns:
        `(size,)` int32 positions, ascending.
    """
    # The 2 tells this stream of random numbers from others of the same seed.
    order = np.random.default_rng((seed, 2)).permutation(len(languages))
    shares = equal_shares(np.bincount(languages), size)
    chosen = [order[languages[order] == language][:share] for language, share in enumerate(shares)]
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def equal_shares(counts: np.ndarray, size: int) -> np.ndarray:
    """`(L,)` how many there are of each → `(L,)` how many of each make `size`, as equally as that allows."""
    shares = np.zeros_like(counts)
    while left := size - int(shares.sum()):
        unfilled = np.flatnonzero(shares < counts)
        shares[unfilled[:left]] += max(1, left // len(unfilled))
        shares = np.minimum(shares, counts)
    return shares
