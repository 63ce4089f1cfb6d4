"""Word and character error rates, with their confidence intervals and error listings.

jiwer aligns; this module counts, pools and prints. Error counts are pooled inside a language (a rate is
never averaged over utterances); the average over languages is the plain mean of their rates, so that a
language with much test data does not hide another.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from itertools import zip_longest
from operator import add
from typing import Any, Literal, cast

import jiwer
import numpy as np

from speechllm_pl.core.errors import printable

Operation = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True)
class ErrorCounts:
    """Edit operations that turn a reference into a hypothesis, in words or in characters."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0
    """Number of units of the reference."""

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference unit, as a fraction.

        An empty reference counts as one unit, so that the rate of pure insertions is finite (JSON has no
        infinity) and that of an empty hypothesis is 0.
        """
        return self.errors / max(self.reference, 1)

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class ScoredUtterance:
    """One utterance with its error counts."""

    id: str
    language: str
    reference: str
    hypothesis: str
    words: ErrorCounts
    characters: ErrorCounts


def word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors in words, as `jiwer.wer` counts them; an empty reference makes every word an insertion."""
    return _counts(jiwer.process_words(reference, hypothesis))


def character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors in characters, spaces included, as `jiwer.cer` counts them."""
    return _counts(jiwer.process_characters(reference, hypothesis))


def score(
    ids: Sequence[str], languages: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]
) -> list[ScoredUtterance]:
    """Score hypotheses against references; the four sequences run in parallel (ValueError if they differ)."""
    return [
        ScoredUtterance(id_, language, said, found, word_errors(said, found), character_errors(said, found))
        for id_, language, said, found in zip(ids, languages, references, hypotheses, strict=True)
    ]


def table(
    utterances: Iterable[ScoredUtterance], *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """The score table of one system: rates as fractions, ready for JSON.

    {"average": {"wer", "cer", "confidence_interval"}, "languages": {language: {"wer", "cer", "words",
    "insertions", "deletions", "substitutions", "utterances", "confidence_interval"}}}

    Counts and intervals are those of words. Languages are in alphabetical order. The average is the plain
    mean over languages. Raises ValueError without utterances.
    """
    by_language: dict[str, list[ScoredUtterance]] = {}
    for utterance in utterances:
        by_language.setdefault(utterance.language, []).append(utterance)
    if not by_language:
        raise ValueError("there are no utterances to score")

    rng = np.random.default_rng(seed)
    languages: dict[str, dict[str, Any]] = {}
    resampled = []
    for language, members in sorted(by_language.items()):
        words = sum((member.words for member in members), ErrorCounts())
        characters = sum((member.characters for member in members), ErrorCounts())
        rates = _resampled_rates(
            np.array([member.words.errors for member in members]),
            np.array([member.words.reference for member in members]),
            samples,
            rng,
        )
        resampled.append(rates)
        languages[language] = {
            "wer": words.rate,
            "cer": characters.rate,
            "words": words.reference,
            "insertions": words.insertions,
            "deletions": words.deletions,
            "substitutions": words.substitutions,
            "utterances": len(members),
            "confidence_interval": _percentiles(rates, level),
        }
    average = {
        "wer": float(np.mean([row["wer"] for row in languages.values()])),
        "cer": float(np.mean([row["cer"] for row in languages.values()])),
        # Every language is resampled on its own, as the test set was drawn.
        "confidence_interval": _percentiles(np.mean(resampled, axis=0), level),
    }
    return {"average": average, "languages": languages}


def paired_difference(
    ours: Sequence[ScoredUtterance],
    others: Sequence[ScoredUtterance],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Difference of the average WER of two systems on the same utterances, below 0 where `ours` has fewer errors.

    {"wer_change", "confidence_interval", "utterances"}: fractions, and the number of utterances. The interval is that
    of a paired bootstrap (Bisani and Ney, 2004): both systems are judged on the same drawn utterances. Raises
    ValueError if the utterances are not the same.
    """
    by_language: dict[str, list[tuple[int, int]]] = {}
    for mine, other in zip(ours, others, strict=True):
        if (mine.id, mine.reference) != (other.id, other.reference):
            raise ValueError(f"utterance {mine.id} stands beside {other.id}")
        difference = mine.words.errors - other.words.errors
        by_language.setdefault(mine.language, []).append((difference, mine.words.reference))
    rng = np.random.default_rng(seed)
    changes, resampled = [], []
    for _, members in sorted(by_language.items()):
        errors, words = np.array(members).T
        changes.append(errors.sum() / max(words.sum(), 1))
        resampled.append(_resampled_rates(errors, words, samples, rng))
    return {
        "wer_change": float(np.mean(changes)),
        "confidence_interval": _percentiles(np.mean(resampled, axis=0), level),
        "utterances": len(ours),
    }


def marked_words(reference: str, hypothesis: str) -> list[tuple[Operation, str | None, str | None]]:
    """The alignment word by word: (operation, reference word, hypothesis word), None where there is none."""
    output = jiwer.process_words(reference, hypothesis)
    reference_words, hypothesis_words = output.references[0], output.hypotheses[0]
    marked: list[tuple[Operation, str | None, str | None]] = []
    for chunk in output.alignments[0]:
        ours = reference_words[chunk.ref_start_idx : chunk.ref_end_idx]
        theirs = hypothesis_words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        marked.extend((cast(Operation, chunk.type), *pair) for pair in zip_longest(ours, theirs))
    return marked


def aligned_listing(utterances: Iterable[ScoredUtterance]) -> str:
    """Every utterance with errors, sorted by id: reference over hypothesis, with S, D or I below each error.

    The first line gives the totals of all utterances, right ones included. Control characters are escapes.
    """
    utterances = sorted(utterances, key=lambda utterance: utterance.id)
    wrong = [utterance for utterance in utterances if utterance.words.errors]
    total = sum((utterance.words for utterance in utterances), ErrorCounts())
    header = f"{len(wrong)} of {len(utterances)} utterances have errors: {_summary(total)}"
    return "\n\n".join([header, *(_aligned(utterance) for utterance in wrong)]) + "\n"


def _aligned(utterance: ScoredUtterance) -> str:
    marks = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}
    columns = []
    for operation, *words in marked_words(utterance.reference, utterance.hypothesis):
        ours, theirs = (None if word is None else printable(word) for word in words)
        width = max(len(ours or ""), len(theirs or ""))
        cells = ("*" * width if ours is None else ours, "*" * width if theirs is None else theirs)
        columns.append([cell.ljust(width) for cell in (*cells, marks[operation])])
    rows = zip(("REF:", "HYP:", "    "), zip(*columns, strict=True), strict=True)
    lines = [" ".join((label, *cells)).rstrip() for label, cells in rows]
    name = printable(f"{utterance.id} [{utterance.language}]")
    return "\n".join([f"{name} {_summary(utterance.words)}", *lines])


def _summary(counts: ErrorCounts) -> str:
    return (
        f"{counts.errors} errors in {counts.reference} words (substitutions {counts.substitutions}, "
        f"deletions {counts.deletions}, insertions {counts.insertions})"
    )


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorCounts:
    return ErrorCounts(
        substitutions=output.substitutions,
        deletions=output.deletions,
        insertions=output.insertions,
        reference=output.hits + output.substitutions + output.deletions,
    )


def _resampled_rates(errors: np.ndarray, words: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Pooled rates `(samples,)` of as many utterances drawn with replacement: utterances and not words, since the
    words of one utterance share a speaker and a topic. One draw at a time: all at once
    would need samples x N indices."""
    rates = np.empty(samples)
    for sample in range(samples):
        drawn = rng.integers(len(errors), size=len(errors))
        rates[sample] = errors[drawn].sum() / max(words[drawn].sum(), 1)
    return rates


def _percentiles(rates: np.ndarray, level: float) -> list[float]:
    return np.quantile(rates, [(1 - level) / 2, (1 + level) / 2]).tolist()
