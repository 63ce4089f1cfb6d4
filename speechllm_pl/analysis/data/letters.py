"""Identify the language of a transcript by its letters, with a character n-gram model for each language of the corpus.

The models are trained on the transcripts that they judge. The corpus is therefore divided into folds by text, and a
text is scored by the counts of the other folds: neither the text itself nor a copy of it speaks in its favour.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

ORDER = 3
"""Length of the n-grams: a character is predicted from up to two before it."""

FOLDS = 4

BUCKETS = 1 << 17
"""Cells of a hash table of counts. A language has about 10,000 different trigrams."""

FEWEST_CHARACTERS = 1000
"""Number of characters below which a language has no usable model."""

UNSEEN = 1e-5
"""Probability of a character that does not occur in the language."""

PRIOR = 5.0
"""Weight, in occurrences, of the prediction from the shorter context."""

MARK = "\n"
"""Marks the beginning and end of a text."""

PENDING = 1000
"""Texts collected before they are counted together."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class LetterModels:
    """Counts of character n-grams by language and fold; 10 MB a language.

    Texts go in by `add`, all of them before the first is scored.
    """

    def __init__(self) -> None:
        # (FOLDS, ORDER, 2, BUCKETS): contexts, and contexts with the character that follows
        self._counts: dict[str, np.ndarray] = {}
        self._pending: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        self._without_fold: dict[str, np.ndarray] | None = None
        self.characters: Counter[str] = Counter()

    def add(self, text: str, language: str, fold: int) -> None:
        key = language, fold
        self._pending[key].append(text)
        self.characters[language] += len(text)
        if len(self._pending[key]) == PENDING:
            self._count(key)

    def languages(self) -> list[str]:
        """Codes of the languages with a usable model; none where there are fewer than two."""
        known = sorted(language for language, count in self.characters.items() if count >= FEWEST_CHARACTERS)
        return known if len(known) > 1 else []

    def scores(self, texts: Sequence[str], folds: Sequence[int]) -> np.ndarray:
        """Log-likelihoods of the texts by the other folds, in nats: `(len(texts), len(languages()))`."""
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
        scored = _scored(texts)
        for order, pair in enumerate(_grams(texts)):
            for kind, buckets in enumerate(pair):
                counted = np.bincount(buckets[scored], minlength=BUCKETS)
                self._counts[language][fold, order, kind] += counted.astype(np.uint32)

    def _finished(self) -> dict[str, np.ndarray]:
        """Counts of all folds except the one of that index, `(FOLDS, ORDER, 2, BUCKETS)` by language."""
        if self._without_fold is None:
            for key in list(self._pending):
                self._count(key)
            self._without_fold = {}
            for language in list(self._counts):
                counts = self._counts.pop(language)  # in place: a second copy would be as large
                self._without_fold[language] = np.subtract(counts.sum(0, dtype=np.uint32), counts, out=counts)
        return self._without_fold


def _codes(texts: Iterable[str]) -> np.ndarray:
    """Code points of all texts in a row, each between marks: `(n,)` uint64."""
    before = MARK * (ORDER - 1)
    joined = "".join(f"{before}{text}{MARK}" for text in texts)
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)


def _scored(texts: Iterable[str]) -> np.ndarray:
    """Positions that are predicted, `(n,)` bool: the characters of each text and the mark after it."""
    parts = (np.r_[np.zeros(ORDER - 1, bool), np.ones(len(text) + 1, bool)] for text in texts)
    return np.concatenate(list(parts))


def _grams(texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cells of each position's context, and of the context with its character, for contexts of 0, 1, … characters."""
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
    """Probability of each character given those before it; rare contexts are smoothed by shorter ones."""
    contexts, counts = (table[cells] for table, cells in zip(tables[0], grams[0], strict=True))
    probabilities = np.maximum(counts / np.maximum(contexts, 1), UNSEEN)
    for table, (context, gram) in zip(tables[1:], grams[1:], strict=True):
        probabilities = (table[1][gram] + PRIOR * probabilities) / (table[0][context] + PRIOR)
    return probabilities
