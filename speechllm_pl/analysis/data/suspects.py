"""Utterances of prepared data in which something looks wrong, by kind, the worst first."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from speechllm_pl.analysis.data.audio_measures import faults
from speechllm_pl.analysis.data.letters import LetterModels
from speechllm_pl.analysis.data.listening import HeardRecording
from speechllm_pl.analysis.data.prepared_data import PreparedData, transcript
from speechllm_pl.core.languages import LANGUAGES

NATS_AHEAD = 10.0
"""Log-likelihood by which another language must be ahead of a text's own: odds of 22,000 to 1."""

NATS_PER_CHARACTER = 0.2
"""Log-likelihood a character by which it must be ahead as well: a foreign name in a long sentence is no fault."""

OUTLIER = 6.0
"""Distance from the median of the language, in robust standard deviations, beyond which a value is suspect."""

FEWEST = 20
"""Number of utterances that a language needs before its outliers are sought."""

SMALLEST_SPREAD = 0.05
"""Lower bound of the robust standard deviation, of log speaking rates and of nats a character.

Recordings that were all made alike have hardly any spread.
"""


class Suspect(NamedTuple):
    """An utterance that may be faulty."""

    utterance: int
    badness: float  # within its kind
    reason: str


class Kind(NamedTuple):
    """A kind of fault."""

    title: str
    singular: str  # what one such utterance is or does
    plural: str
    sampled: bool  # judged from the decoded sample alone


KINDS = {
    "language": Kind("Letters of another language", "reads like another language", "read like another language", False),
    "alphabet": Kind(
        "Alphabet of another language",
        "is written with the alphabet of another language",
        "are written with the alphabet of another language",
        False,
    ),
    "fast": Kind("Spoken too fast", "is spoken much faster than others", "are spoken much faster than others", False),
    "slow": Kind("Spoken too slowly", "is spoken much slower than others", "are spoken much slower than others", False),
    "empty": Kind("No transcript", "has no transcript", "have no transcript", False),
    "unreadable": Kind("Unreadable", "cannot be read", "cannot be read", True),
    "silent": Kind("Silent", "is silent", "are silent", True),
    "quiet": Kind("Quiet", "is very quiet", "are very quiet", True),
    "constant": Kind("Constant", "hardly ever moves", "hardly ever move", True),
    "clipped": Kind("Clipped", "is clipped", "are clipped", True),
    "offset": Kind("DC offset", "has a DC offset", "have a DC offset", True),
    "noisy": Kind("Noisy", "is very noisy", "are very noisy", True),
    "ctc": Kind(
        "The model hears something else",
        "has a transcript that the model does not find in it",
        "have transcripts that the model does not find in them",
        True,
    ),
}

SOUND = ("unreadable", "silent", "quiet", "constant", "clipped", "offset", "noisy")


class Found(NamedTuple):
    """Utterances suspected of one kind of fault."""

    count: int
    worst: list[Suspect]  # some of them, the worst first


def suspects(
    data: PreparedData,
    letters: LetterModels,
    ahead: tuple[np.ndarray, np.ndarray],
    heard: Mapping[int, HeardRecording],
    keep: int,
) -> tuple[dict[str, Found], dict[str, Any]]:
    """Find the suspects of each kind, keep the worst, and return them with the limits that were derived from the data.

    Args:
        ahead: what `judged_by_letters` returned.
        heard: the recordings that were decoded.
        keep: number of utterances to keep of each kind.
    """
    fast, slow, rate_limits = _by_rate(data, keep)
    ctc, score_limits = _by_score(data, heard, keep)
    found = {
        "language": _by_letters(data, letters, *ahead, keep),
        "alphabet": _by_alphabet(data, keep),
        "fast": fast,
        "slow": slow,
        "empty": _worst(data.text == 0, data.seconds, keep, lambda utterance: "no transcript"),
        **_by_sound(heard, keep),
        "ctc": ctc,
    }
    return found, {"characters_per_second": rate_limits, "nats_per_character": score_limits}


def _worst(chosen: np.ndarray, badness: np.ndarray, keep: int, reason: Callable[[int], str]) -> Found:
    """Number of utterances in the mask `chosen`, `(N,)`, and the worst `keep` of them."""
    rows = np.flatnonzero(chosen)
    kept = rows[np.argsort(-badness[rows], kind="stable")[:keep]]
    return Found(len(rows), [Suspect(int(row), float(badness[row]), reason(int(row))) for row in kept])


def _by_letters(data: PreparedData, letters: LetterModels, ahead: np.ndarray, best: np.ndarray, keep: int) -> Found:
    per_character = ahead / (data.characters + 1)  # the end of the text counts as one
    languages = letters.languages()

    def reason(utterance: int) -> str:
        other = languages[best[utterance]]
        return (
            f"labelled {data.language_of(utterance)}, its letters are those of {other}: {ahead[utterance]:.0f} nats"
            f" ahead, {per_character[utterance]:.2f} a character"
        )

    return _worst((ahead >= NATS_AHEAD) & (per_character >= NATS_PER_CHARACTER), ahead, keep, reason)


def _by_alphabet(data: PreparedData, keep: int) -> Found:
    codes = list(LANGUAGES)

    def reason(utterance: int) -> str:
        own, other = data.language_of(utterance), codes[data.alphabet[utterance] - 1]
        strange = sorted(set(transcript(data.cut(utterance))) - LANGUAGES[own].known_characters)
        return f"labelled {own}, but {' '.join(strange)} are letters of {other}"

    return _worst(data.alphabet > 0, 1 / np.maximum(data.characters, 1), keep, reason)


def _by_rate(data: PreparedData, keep: int) -> tuple[Found, Found, dict[str, Any]]:
    """Utterances spoken too fast and too slowly, and the usual rates of each language that has enough utterances."""
    rates = data.characters / np.maximum(data.seconds, 1e-3)
    away = np.zeros(len(data), np.float32)
    limits = {}
    for language in sorted(data.languages):
        rows = data.in_language(language) & (data.characters > 0)
        if np.count_nonzero(rows) >= FEWEST:
            usual = Usual.of(np.log(rates[rows]))
            away[rows] = usual.deviations(np.log(rates[rows]))
            low, median, high = (math.exp(usual.median + far * usual.spread) for far in (-OUTLIER, 0, OUTLIER))
            limits[language] = {"low": low, "median": median, "high": high}

    def reason(utterance: int) -> str:
        usual = limits[data.language_of(utterance)]["median"]
        return f"{rates[utterance]:.1f} characters a second, where {usual:.1f} are usual"

    fast, slow = (_worst(sign * away > OUTLIER, sign * away, keep, reason) for sign in (1, -1))
    return fast, slow, limits


def _by_sound(heard: Mapping[int, HeardRecording], keep: int) -> dict[str, Found]:
    found: dict[str, list[Suspect]] = {kind: [] for kind in SOUND}
    for utterance, each in heard.items():
        if each.measures is None:
            found["unreadable"].append(Suspect(utterance, 0.0, f"cannot be read: {each.error}"))
        else:
            for kind, (badness, reason) in faults(each.measures).items():
                found[kind].append(Suspect(utterance, badness, reason))
    return {kind: _sorted(listed, keep) for kind, listed in found.items()}


def _by_score(data: PreparedData, heard: Mapping[int, HeardRecording], keep: int) -> tuple[Found, dict[str, Any]]:
    """Recordings in which a model does not find the transcript, and the usual scores of each language."""
    listed: list[Suspect] = []
    limits = {}
    for language in sorted(data.languages):
        scores = {
            utterance: each.score.log_posterior / data.characters[utterance]
            for utterance, each in heard.items()
            if each.score and data.characters[utterance] and data.language_of(utterance) == language
        }
        possible = np.array([score for score in scores.values() if score > -math.inf])
        listed += [
            Suspect(utterance, math.inf, "its transcript has more pieces than the recording has frames")
            for utterance, score in scores.items()
            if score == -math.inf
        ]
        if len(possible) < FEWEST:
            continue
        usual = Usual.of(possible)
        limits[language] = {"median": usual.median, "low": usual.median - OUTLIER * usual.spread, "of": len(scores)}
        listed += [
            Suspect(
                utterance, usual.median - score, f"{score:.2f} nats a character, where {usual.median:.2f} are usual"
            )
            for utterance, score in scores.items()
            if -math.inf < score < limits[language]["low"]
        ]
    return _sorted(listed, keep), limits


def _sorted(listed: list[Suspect], keep: int) -> Found:
    return Found(len(listed), sorted(listed, key=lambda suspect: (-suspect.badness, suspect.utterance))[:keep])


class Usual(NamedTuple):
    """Median, and a standard deviation robust to outliers: scaled median of the distances to the median."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Usual":
        median = float(np.median(values))
        distance = float(np.median(np.abs(values - median)))
        return cls(median, max(1.4826 * distance, SMALLEST_SPREAD))  # of a normal distribution

    def deviations(self, values: np.ndarray) -> np.ndarray:
        return (values - self.median) / self.spread
