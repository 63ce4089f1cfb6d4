"""Batches of pretraining."""

import random

from data_prep.tiny_llm.noisy_copies import collate
from data_prep.tiny_llm.pretraining import Recipe, _groups_of_similar_length

VOCABULARY = range(5, 50)


EIGHT_LANGUAGES = {
    "en": ["three hundred and forty five", "it's nine", "seventy two"],
    "de": ["fünfhundertdreiundzwanzig", "zwölf", "dreißig"],
    "nl": ["drieëntwintig", "vijf", "achtenzestig"],
    "fr": ["quatre-vingt-dix", "zéro", "l'été"],
    "es": ["veintidós", "mil", "dieciséis"],
    "it": ["ventitré", "cento", "sessantuno"],
    "pt": ["três", "cinquenta e três", "cento e dez"],
    "pl": ["pięć", "dziewięćdziesiąt sześć", "sto"],
}


SMALL = Recipe(
    steps=40,
    batch_tokens=300,
    learning_rate=1e-2,
    vocabulary_size=120,
    hidden_size=32,
    intermediate_size=48,
    layers=2,
    heads=2,
)


def test_batches_stay_within_their_tokens_and_hold_sequences_of_similar_length() -> None:
    rng = random.Random(0)
    pairs = [([5] * rng.randint(0, 60), [6] * rng.randint(1, 20)) for _ in range(300)]
    groups = _groups_of_similar_length(pairs, 400)
    assert sorted(pair for group in groups for pair in group) == sorted(pairs)
    padded = [collate(group).ids.numel() for group in groups]
    assert max(padded) <= 400
    assert sum(len(p) + len(t) + 2 for p, t in pairs) > 0.9 * sum(padded)
