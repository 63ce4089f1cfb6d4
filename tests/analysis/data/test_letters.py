"""Character models: against sums over dictionaries, and on texts whose language is known."""

import math
from collections import Counter

import numpy as np
import pytest
from num2words import num2words

from speechllm_pl.analysis.data.letters import FOLDS, MARK, ORDER, PRIOR, UNSEEN, LetterModels


def numbers(language: str, count: int, seed: int) -> list[str]:
    drawn = np.random.default_rng(seed).choice(900_000, count, replace=False) + 100_000
    return [num2words(int(number), lang=language) for number in drawn]


def filled(texts_by_language: dict[str, list[str]]) -> LetterModels:
    models = LetterModels()
    for language, texts in texts_by_language.items():
        for place, text in enumerate(texts):
            models.add(text, language, place % FOLDS)
    return models


def brute_force(text: str, others: list[str]) -> float:
    """Nats of a text by counts of `others`, with dictionaries of strings."""
    grams, contexts = Counter(), Counter()
    for other in others:
        marked = MARK * (ORDER - 1) + other + MARK
        for place in range(ORDER - 1, len(marked)):
            for order in range(ORDER):
                grams[marked[place - order : place + 1]] += 1
                contexts[order, marked[place - order : place]] += 1
    nats, marked = 0.0, MARK * (ORDER - 1) + text + MARK
    for place in range(ORDER - 1, len(marked)):
        probability = max(grams[marked[place]] / contexts[0, ""], UNSEEN)
        for order in range(1, ORDER):
            context = marked[place - order : place]
            probability = (grams[marked[place - order : place + 1]] + PRIOR * probability) / (
                contexts[order, context] + PRIOR
            )
        nats += math.log(probability)
    return nats


def test_scores_are_those_of_counted_strings_without_the_texts_own_fold():
    texts = {"de": numbers("de", 40, seed=0), "nl": numbers("nl", 40, seed=1)}
    models = filled(texts)
    for place in (0, 1, 5, 39):
        found = models.scores([texts["de"][place], "x"], [place % FOLDS, 0])
        for column, language in enumerate(models.languages()):
            others = [text for number, text in enumerate(texts[language]) if number % FOLDS != place % FOLDS]
            assert found[0, column] == pytest.approx(brute_force(texts["de"][place], others), rel=1e-9)


def test_a_text_does_not_speak_for_itself():
    texts = {"de": [*numbers("de", 40, seed=0), "qqqqqqqq"], "nl": numbers("nl", 40, seed=1)}
    own, other = filled(texts).scores(["qqqqqqqq"], [40 % FOLDS])[0]
    assert own == pytest.approx(other, abs=5)  # it is as strange to both
    seen_elsewhere = filled(texts).scores(["qqqqqqqq"], [(40 + 1) % FOLDS])[0]
    assert seen_elsewhere[0] > seen_elsewhere[1] + 20


def test_every_text_is_nearest_to_its_language():
    languages = ("de", "en", "fr", "nl", "pl")
    texts = {language: numbers(language, 40, seed) for seed, language in enumerate(languages)}
    models = filled(texts)
    for column, language in enumerate(models.languages()):
        found = models.scores(texts[language], [place % FOLDS for place in range(40)])
        assert (found.argmax(axis=1) == column).all()


def test_one_language_or_few_letters_are_not_compared():
    assert filled({"de": numbers("de", 40, seed=0)}).languages() == []
    assert filled({"de": numbers("de", 40, seed=0), "nl": ["vijf"]}).languages() == []
