"""Which language a transcript is written in, judged by its letters: a character model per language of the corpus.

The models learn from the transcripts that they judge. So the corpus is cut into folds by text, and a text is scored
by what the other folds say: no text speaks for itself, nor does its copy elsewhere.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

ORDER = 3
"""Characters are predicted from up to two before them."""

FOLDS = 4

BUCKETS = 1 << 17
"""Cells of a table of counts, which characters reach by hashing. A language has some 10,000 kinds of trigrams."""

FEWEST_CHARACTERS = 1000
"""Of a language, below which its model is not asked."""

UNSEEN = 1e-5
"""Probability of a character that its language has not shown, whichever it is."""

PRIOR = 5.0
"""Occurrences that the prediction from a shorter context counts for."""

MARK = "\n"
"""Stands before and behind a text."""

PENDING = 100_000
"""Characters that are counted together."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class LetterModels:
    """Counts of character n-grams by language and fold; 10 MB a language.

    Texts go in by `add`, all of them before the first is scored.
    """

    def __init__(self) -> None:
        # (FOLDS, ORDER, 2, BUCKETS): contexts, and contexts with the character that follows
        self._counts: dict[str, np.ndarray] = {}
        self._pending: dict[tuple[str, int], list[str]] = {}
        self._waiting: dict[tuple[str, int], int] = {}
        self._without_fold: dict[str, np.ndarray] | None = None
        self.characters: dict[str, int] = {}

    def add(self, text: str, language: str, fold: int) -> None:
        key = language, fold
        self._pending.setdefault(key, []).append(text)
        self._waiting[key] = self._waiting.get(key, 0) + len(text)
        self.characters[language] = self.characters.get(language, 0) + len(text)
        if self._waiting[key] > PENDING:
            self._count(key)

    def languages(self) -> list[str]:
        """Those that can be told from one another, by their code."""
        known = sorted(language for language, count in self.characters.items() if count >= FEWEST_CHARACTERS)
        return known if len(known) > 1 else []

    def scores(self, texts: Sequence[str], folds: Sequence[int]) -> np.ndarray:
        """`(len(texts), len(languages()))` nats: log-likelihood of each text in each language, by the other folds."""
        tables = self._finished()
        scores = np.zeros((len(texts), len(self.languages())))
        for fold in set(folds):
            rows = [row for row, own in enumerate(folds) if own == fold]
            chosen = [texts[row] for row in rows]
            grams, scored = list(_grams(chosen)), _scored(chosen)
            starts = np.cumsum([0, *(len(text) + 1 for text in chosen[:-1])])
            for column, language in enumerate(self.languages()):
                logs = np.log(_probabilities(tables[language][fold], grams)[scored])
                scores[rows, column] = np.add.reduceat(logs, starts)
        return scores

    def _count(self, key: tuple[str, int]) -> None:
        language, fold = key
        if language not in self._counts:
            self._counts[language] = np.zeros((FOLDS, ORDER, 2, BUCKETS), np.uint32)
        texts = self._pending.pop(key)
        del self._waiting[key]
        scored = _scored(texts)
        for order, pair in enumerate(_grams(texts)):
            for kind, buckets in enumerate(pair):
                counted = np.bincount(buckets[scored], minlength=BUCKETS)
                self._counts[language][fold, order, kind] += counted.astype(np.uint32)

    def _finished(self) -> dict[str, np.ndarray]:
        """By language `(FOLDS, ORDER, 2, BUCKETS)`: what all folds but this one have counted."""
        if self._without_fold is None:
            for key in list(self._pending):
                self._count(key)
            self._without_fold = {}
            for language in list(self._counts):
                counts = self._counts.pop(language)  # in place: a second copy would be as large
                self._without_fold[language] = np.subtract(counts.sum(0, dtype=np.uint32), counts, out=counts)
        return self._without_fold


def _codes(texts: Iterable[str]) -> np.ndarray:
    """`(n,)` uint64 code points of all texts in a row, each with the marks around it."""
    before = MARK * (ORDER - 1)
    joined = "".join(f"{before}{text}{MARK}" for text in texts)
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)


def _scored(texts: Iterable[str]) -> np.ndarray:
    """`(n,)` whether a place is predicted: the characters of the texts and the mark behind each."""
    parts = (np.r_[np.zeros(ORDER - 1, bool), np.ones(len(text) + 1, bool)] for text in texts)
    return np.concatenate(list(parts))


def _grams(texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For contexts of 0, 1, … characters: the cell of the context and that of it with its character, by place."""
    codes = _codes(texts)
    context = np.zeros_like(codes)
    for _ in range(ORDER):
        gram = context * MULTIPLIER + codes + np.uint64(1)
        yield _cell(context), _cell(gram)
        context = np.r_[np.zeros(1, np.uint64), gram[:-1]]


def _cell(hashes: np.ndarray) -> np.ndarray:
    shift = np.uint64(65 - BUCKETS.bit_length())
    return ((hashes ^ (hashes >> np.uint64(29))) * MULTIPLIER >> shift).astype(np.intp)


def _probabilities(tables: np.ndarray, grams: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Of each character after those before it; what few occurrences say is mended by shorter contexts."""
    contexts, counts = (table[cells] for table, cells in zip(tables[0], grams[0], strict=True))
    probabilities = np.maximum(counts / np.maximum(contexts, 1), UNSEEN)
    for table, (context, gram) in zip(tables[1:], grams[1:], strict=True):
        probabilities = (table[1][gram] + PRIOR * probabilities) / (table[0][context] + PRIOR)
    return probabilities
