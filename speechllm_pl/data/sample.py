"""Draw a fixed sample of utterances that represents every language."""

import numpy as np


def balanced_sample(languages: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draw equally many utterances of each language; where one has too few, more of the others.

    Args:
        languages: `(N,)` small number of each utterance's language.
        size: size of the sample, at most N.
        seed: seed of the choice, which is a function of it and of `languages`.

    Returns:
        `(size,)` int32 positions, ascending.
    """
    # The 2 tells this stream of random numbers from others of the same seed.
    order = np.random.default_rng((seed, 2)).permutation(len(languages))
    shares = equal_shares(np.bincount(languages), size)
    chosen = [order[languages[order] == language][:share] for language, share in enumerate(shares)]
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def equal_shares(counts: np.ndarray, size: int) -> np.ndarray:
    """Divide `size` among L kinds as equally as their `(L,)` counts allow."""
    shares = np.zeros_like(counts)
    while left := size - int(shares.sum()):
        unfilled = np.flatnonzero(shares < counts)
        shares[unfilled[:left]] += max(1, left // len(unfilled))
        shares = np.minimum(shares, counts)
    return shares
