"""Text normalization: what a transcript looks like before it is learned from or scored.

Training and scoring must agree on case, punctuation and numbers, or the error rate measures typography.
The rules that differ between languages are data (`core/languages.py`); the functions that apply them are pure.
Transcripts that their corpus has normalized already, and that others score as they are, keep its words: they need
no more than `as_published`.
Nothing is lost silently: only the punctuation and the invisible characters listed here are removed, and
`strange_characters` reports whatever else lies outside the language's alphabet.
"""

import re
import unicodedata
from collections import Counter
from typing import Literal

from num2words import num2words

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import LANGUAGES, Language

APOSTROPHES = "'’‘‛ʼʻ`´′＇"
"""Characters that normalization replaces by the first of them."""

HYPHENS = "-‐‑"
"""Characters that normalization replaces by the first of them."""

INVISIBLE = (
    "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\ufe0e\ufe0f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
"""Removed characters: soft hyphen, zero-width characters, variation selectors and directional marks."""

LIGATURES = {"ĳ": "ij", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl"}
"""Presentation forms of several letters. œ, æ and ß are letters of their own and are kept."""

LONGEST_CARDINAL = 12
"""Longer digit strings (telephone, account numbers), and those with a leading zero, are read by the digit."""

_VISIBLE = str.maketrans(dict.fromkeys(INVISIBLE, ""))
_UNIFIED = str.maketrans(dict.fromkeys(APOSTROPHES, APOSTROPHES[0]) | dict.fromkeys(HYPHENS, HYPHENS[0]))
_LIGATURES = str.maketrans(LIGATURES)
_LETTER = r"[^\W\d_]"
_LOOSE_HYPHEN = re.compile(rf"(?<!{_LETTER})-|-(?!{_LETTER})")
_DOUBLED_APOSTROPHE = re.compile(r"'{2,}")
_PERCENT = re.compile(r"(?<=[0-9])\s?%")


def as_published(text: str) -> str:
    """The text in Unicode NFC, words separated by single spaces, and nothing else changed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalize(text: str, language: str, *, digits: Literal["keep", "spell"] = "spell", respell: bool = False) -> str:
    """The text in Unicode NFC and lower case, without punctuation, words separated by single spaces.

    Normalizing twice changes nothing.

    Args:
        digits: "spell" writes numbers out as words, read by the language's own decimal and thousands marks; "keep"
            leaves them in digits and removes only the thousands marks.
        respell: write accents that stand as apostrophes (e', perche') as what they are: for sources that were typed
            without them, and not for older texts, in which the same may be other words.

    Raises:
        UserError: there are no rules for the language.
    """
    rules = _rules(language)
    text = unicodedata.normalize("NFC", text.translate(_VISIBLE)).translate(_UNIFIED).lower()
    # Lower-casing can leave a decomposed letter (İ), and a ligature may hide another letter's case.
    text = unicodedata.normalize("NFC", text.translate(_LIGATURES))
    text = _spell_numbers(text, rules) if digits == "spell" else _keep_numbers(text, rules)
    text = rules.punctuation.sub(" ", text)
    text = _LOOSE_HYPHEN.sub(" ", text) if rules.keep_hyphen else text.replace("-", " ")
    text = _DOUBLED_APOSTROPHE.sub(" ", text) if rules.keep_apostrophe else text.replace("'", " ")
    return " ".join(filter(None, (_without_quotes(word, rules, respell) for word in text.split())))


def strange_characters(text: str, language: str) -> dict[str, int]:
    """Counts of the characters outside the language's alphabet, most frequent first.

    Meant for normalized text; raw text is normalized first, with its digits kept, so that the punctuation
    which `normalize` removes is not counted. Digits are never strange.
    """
    known = _rules(language).known_characters
    counts = Counter(normalize(text, language, digits="keep"))
    return {character: count for character, count in counts.most_common() if character not in known}


def _rules(language: str) -> Language:
    if language not in LANGUAGES:
        raise UserError(f"unknown language {language!r}: the known ones are {', '.join(sorted(LANGUAGES))}")
    return LANGUAGES[language]


def _without_quotes(word: str, rules: Language, respell: bool) -> str:
    """The word without apostrophes at its edges, unless they belong to it; where both edges have one, it is quoted."""
    body = word.strip("'")
    opened, closed = word.startswith("'"), word.endswith("'")
    if opened and f"'{body}" in rules.apostrophe_words:
        return f"'{body}"
    cut = f"{body}'"
    if closed and not opened and (cut in rules.apostrophe_words or cut in rules.respelled):
        return rules.respelled.get(cut, cut) if respell else cut
    return body


def _keep_numbers(text: str, rules: Language) -> str:
    """Numbers in digits without thousands marks. Ordinary spaces stay: they may separate two numbers."""
    text = rules.grouped.sub(_without_spaces, text)

    def rewrite(match: re.Match[str]) -> str:
        number = rules.number.fullmatch(match[1])
        suffix = match[2] or ""
        if number is None:
            return re.sub("[.,]", " ", match[1]) + suffix
        return match[1].replace(rules.thousands_mark, "") + suffix

    return rules.figure.sub(rewrite, text)


def _spell_numbers(text: str, rules: Language) -> str:
    text = rules.grouped.sub(_without_spaces, text)
    if rules.thousands_space:
        text = rules.spaced.sub(_without_spaces, text)
    text = _PERCENT.sub(f" {rules.percent} ", text)
    words = rules.figure.sub(lambda match: f" {_in_words(match[1], match[2], rules)} ", text)
    return unicodedata.normalize("NFC", words.lower())


def _without_spaces(match: re.Match[str]) -> str:
    return re.sub(r"\s", "", match[0])


def _in_words(figure: str, suffix: str | None, rules: Language) -> str:
    """The words of one figure; one that is not a number (1.2.2024) is read part by part."""
    number = rules.number.fullmatch(figure)
    if number is None:
        return " ".join(_cardinal(part, rules) for part in re.split("[.,]", figure)) + (suffix or "")
    integer, decimals = number[1].replace(rules.thousands_mark, ""), number[2]
    if decimals is not None:
        digits = " ".join(_cardinal(digit, rules) for digit in decimals)
        return f"{_cardinal(integer, rules)} {rules.decimal_word} {digits} {suffix or ''}"
    if suffix is not None and len(integer) <= LONGEST_CARDINAL:
        ending, replacement = rules.ordinals[suffix]
        ordinal = num2words(int(integer), lang=rules.code, to="ordinal")
        return re.sub(rf"{ending}\b", replacement, ordinal) if ending else ordinal
    return f"{_cardinal(integer, rules)} {suffix or ''}"


def _cardinal(integer: str, rules: Language) -> str:
    if len(integer) > 1 and (integer[0] == "0" or len(integer) > LONGEST_CARDINAL):
        return " ".join(num2words(int(digit), lang=rules.code) for digit in integer)
    return num2words(int(integer), lang=rules.code)
