"""Batches of pretraining."""

import random

from data_prep.tiny_llm.noisy_copies import collate
from data_prep.tiny_llm.pretraining import _groups_of_similar_length

VOCABULARY = range(5, 50)


def test_batches_stay_within_their_tokens_and_hold_sequences_of_similar_length() -> None:
    rng = random.Random(0)
    pairs = [([5] * rng.randint(0, 60), [6] * rng.randint(1, 20)) for _ in range(300)]
    groups = _groups_of_similar_length(pairs, 400)
    assert sorted(pair for group in groups for pair in group) == sorted(pairs)
    padded = [collate(group).ids.numel() for group in groups]
    assert max(padded) <= 400
    assert sum(len(p) + len(t) + 2 for p, t in pairs) > 0.9 * sum(padded)
