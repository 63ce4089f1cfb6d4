"""Kneser-Ney probabilities by their definition, found in the file by the rule of back-off."""

import itertools
import math
from pathlib import Path

import pytest

from data_prep.ngram import BEGIN, END, arpa, estimate

SENTENCES = ["a b a c", "a b", "b a b a c", "c", "a b a c", "c c a", "b"]
WORDS = ["a", "b", "c", "d"]  # d is never said
ORDER = 3


def read(text: str) -> tuple[dict, dict]:
    """Probabilities and back-off factors of an ARPA file."""
    probabilities, backoffs = {}, {}
    for line in text.splitlines():
        logarithm, *rest = line.split("\t")
        if rest:
            ngram = tuple(rest[0].split())
            probabilities[ngram] = 10 ** float(logarithm)
            backoffs[ngram] = 10 ** float(rest[1]) if rest[1:] else 1.0
    return probabilities, backoffs


def probability(model: tuple[dict, dict], history: tuple[str, ...], word: str) -> float:
    probabilities, backoffs = model
    if (*history, word) in probabilities:
        return probabilities[*history, word]
    return backoffs.get(history, 1.0) * probability(model, history[1:], word)


class ByDefinition:
    """Interpolated Kneser-Ney, straight from Chen & Goodman (1999), eq. 4.35, by going through all sentences."""

    def __init__(self) -> None:
        marked = [(BEGIN, *sentence.split(), END) for sentence in SENTENCES]
        self.grams = {n: [s[i : i + n] for s in marked for i in range(len(s) - n + 1)] for n in range(1, ORDER + 1)}

    def count(self, ngram: tuple[str, ...]) -> int:
        if len(ngram) == ORDER or ngram[0] == BEGIN:
            return self.grams[len(ngram)].count(ngram)
        return len({longer for longer in self.grams[len(ngram) + 1] if longer[1:] == ngram})

    def __call__(self, history: tuple[str, ...], word: str) -> float:
        shorter = self(history[1:], word) if history else 1 / (len(WORDS) + 1)
        length = len(history) + 1
        kinds = [each for each in set(self.grams[length]) if each != (BEGIN,)]
        counts = {kind: self.count(kind) for kind in kinds}
        once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        after = {kind: count for kind, count in counts.items() if kind[:-1] == history}
        if not after:
            return shorter
        total = sum(after.values())
        own = max(after.get((*history, word), 0) - discount, 0) / total
        return own + discount * len(after) / total * shorter


@pytest.fixture(scope="module")
def model() -> tuple[dict, dict]:
    return read(arpa(estimate([sentence.split() for sentence in SENTENCES], WORDS, ORDER)))


def histories() -> list[tuple[str, ...]]:
    words = [*WORDS, BEGIN]
    pairs = [(first, second) for first, second in itertools.product(words, words) if second != BEGIN]
    return [(), *((word,) for word in words), *pairs]


@pytest.mark.parametrize("history", histories(), ids=str)
def test_probabilities_are_those_of_the_definition_and_sum_to_one(model, history: tuple[str, ...]) -> None:
    definition = ByDefinition()
    found = {word: probability(model, history, word) for word in [*WORDS, END]}
    assert found == pytest.approx({word: definition(history, word) for word in [*WORDS, END]}, rel=1e-4)
    assert sum(found.values()) == pytest.approx(1, abs=1e-4)


def test_kenlm_reads_the_same_probabilities(model, tmp_path: Path) -> None:
    decoder = pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="needs the extra ngram")
    dictionary = pytest.importorskip("flashlight.lib.text.dictionary")
    path = tmp_path / "ngram.arpa"
    path.write_text(arpa(estimate([sentence.split() for sentence in SENTENCES], WORDS, ORDER)))
    lm = decoder.KenLM(str(path), dictionary.Dictionary(WORDS))
    for sentence in (*SENTENCES, "d a", "c b a d"):
        state, total = lm.start(False), 0.0
        for word in sentence.split():
            state, score = lm.score(state, WORDS.index(word))
            total += score
        total += lm.finish(state)[1]
        marked = [BEGIN, *sentence.split(), END]
        expected = [
            probability(model, tuple(marked[max(0, place - 2) : place]), marked[place])
            for place in range(1, len(marked))
        ]
        assert total == pytest.approx(sum(map(math.log10, expected)), abs=1e-4)
