"""New texts from those that searches found: the best one, with the words of another in one place.

Beam searches keep few combinations of doubtful words: a text that is right in one place is wrong in another. The places
where texts differ are those of an alignment of their words, as in a confusion network (Mangu et al., arXiv
cs/0010012).
"""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

OTHERS = 24
"""Number of texts after the best one from which words are taken."""


def recombined(texts: Sequence[str], most: int) -> list[str]:
    """Texts that read as the first but for one place, where they read as another; those of likelier texts first.

    Args:
        texts: texts of an utterance, the best one first.
        most: largest number of new texts.
    """
    if not texts:
        return []
    best, *others = (text.split() for text in texts[: 1 + OTHERS])
    known = {*texts}
    new = {
        text: None
        for other in others
        for first, last, words in _differences(best, other)
        if (text := " ".join([*best[:first], *words, *best[last:]])) not in known
    }
    return list(new)[:most]


def _differences(best: Sequence[str], other: Sequence[str]) -> Iterator[tuple[int, int, Sequence[str]]]:
    """First word, the one after the last, and the other text's words in place of them."""
    for kind, first, last, start, end in SequenceMatcher(None, best, other, autojunk=False).get_opcodes():
        if kind != "equal":
            yield first, last, other[start:end]
