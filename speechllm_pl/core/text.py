"""Text normalization: what a transcript looks like before it is learned from or scored.

Training and scoring must agree on case, punctuation and numbers, or the error rate measures typography.
The rules that differ between languages are data (`LANGUAGES`); the functions that apply them are pure.
Transcripts that their corpus has normalized already, and that others score as they are, keep its words: they need
no more than `as_published`.
Nothing is lost silently: only the punctuation and the invisible characters listed here are removed, and
`strange_characters` reports whatever else lies outside the language's alphabet.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from num2words import num2words

from speechllm_pl.core.errors import UserError

PUNCTUATION = '.,;:!?¡¿…"“”„‟‚«»‹›()[]{}/–—―‒•'
"""Becomes a space. Symbols that are spoken (%, &, €, +, ...) are not in it: they stay and are reported."""

APOSTROPHES = "'’‘‛ʼʻ`´′＇"
"""All become the first of them."""

HYPHENS = "-‐‑"
"""All become the first of them."""

INVISIBLE = (
    "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\ufe0e\ufe0f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
"""Removed: soft hyphen, zero-width characters, variation selectors and directional marks."""

LIGATURES = {"ĳ": "ij", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl"}
"""Presentation forms of several letters. œ, æ and ß are letters of their own and are kept."""

GROUP_SPACES = "\u00a0\u202f\u2009"
"""No-break and thin spaces: between groups of three digits they separate thousands in every language."""

LONGEST_CARDINAL = 12
"""Longer digit strings (telephone, account numbers), and those with a leading zero, are read by the digit."""


@dataclass(frozen=True, eq=False)
class Language:
    """The rules of one language."""

    code: str
    """ISO 639-1, which is also the name that num2words knows."""
    name: str
    letters: str
    """The alphabet in lower case, with the letters that names and loan words commonly bring."""
    decimal_mark: Literal[".", ","]
    decimal_word: str
    percent: str
    """How "%" after a number is read."""
    thousands_space: bool = False
    """Whether an ordinary space between groups of three digits separates thousands: 3 000."""
    keep_hyphen: bool = False
    """Whether a hyphen between letters stays; otherwise it becomes a space."""
    keep_apostrophe: bool = True
    """Whether an apostrophe inside a word stays; otherwise it becomes a space."""
    apostrophe_words: frozenset[str] = frozenset()
    """Words that begin or end with an apostrophe, as those of `respelled` do. At the edge of any other word it is a
    quotation mark."""
    respelled: Mapping[str, str] = field(default_factory=dict)
    """Words ending in an apostrophe where it may stand for an accent, and then their proper spelling. In older texts
    it may stand for lost letters instead: ne' campi is nei campi."""
    ordinals: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Suffix of an ordinal in digits -> (ending, replacement) for every word that num2words gives."""

    @property
    def thousands_mark(self) -> str:
        return "," if self.decimal_mark == "." else "."

    @cached_property
    def known_characters(self) -> frozenset[str]:
        """All that a normalized text may hold: with digits kept, these and the decimal mark as well."""
        marks = "'" * self.keep_apostrophe + "-" * self.keep_hyphen
        return frozenset(self.letters + marks + " 0123456789" + self.decimal_mark)

    @cached_property
    def _grouped(self) -> re.Pattern[str]:
        """A number whose thousands are separated by no-break spaces."""
        return re.compile(rf"(?<![\d.,])[1-9]\d{{0,2}}(?:[{GROUP_SPACES}]\d{{3}})+(?!\d)", re.ASCII)

    @cached_property
    def _spaced(self) -> re.Pattern[str]:
        """A number whose thousands are separated by ordinary spaces."""
        return re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?!\d)", re.ASCII)

    @cached_property
    def _figure(self) -> re.Pattern[str]:
        """Digits with inner marks, as group 1, and an ordinal suffix, as group 2."""
        suffixes = "|".join(sorted(self.ordinals, key=len, reverse=True)) or r"(?!)"
        return re.compile(rf"([0-9]+(?:[.,][0-9]+)*)(?:({suffixes})(?!\w))?")

    @cached_property
    def _number(self) -> re.Pattern[str]:
        """A well-formed number: integer part as group 1, decimals as group 2."""
        thousands, decimal = re.escape(self.thousands_mark), re.escape(self.decimal_mark)
        return re.compile(rf"([1-9]\d{{0,2}}(?:{thousands}\d{{3}})+|\d+)(?:{decimal}(\d+))?", re.ASCII)

    @cached_property
    def _punctuation(self) -> re.Pattern[str]:
        """Punctuation, except a decimal mark between digits."""
        others = re.escape(PUNCTUATION.replace(self.decimal_mark, ""))
        mark = re.escape(self.decimal_mark)
        return re.compile(rf"[{others}]|(?<![0-9]){mark}|{mark}(?![0-9])")


def _words(line: str) -> frozenset[str]:
    return frozenset(line.split())


LATIN = "abcdefghijklmnopqrstuvwxyz"
SAME = ("", "")
MASCULINE_AND_FEMININE = {"º": SAME, "ª": ("o", "a")}

LANGUAGES: Mapping[str, Language] = {
    language.code: language
    for language in (
        Language(
            code="en",
            name="English",
            letters=LATIN,
            decimal_mark=".",
            decimal_word="point",
            percent="percent",
            apostrophe_words=_words("'em 'tis 'twas 'twere 'twill 'twould 'til 'cause o'"),
            ordinals=dict.fromkeys(("st", "nd", "rd", "th"), SAME),
        ),
        Language(
            code="de",
            name="German",
            letters=LATIN + "äöüßé",
            decimal_mark=",",
            decimal_word="komma",
            percent="prozent",
            apostrophe_words=frozenset({"'s", "'n", "'ne"}),
        ),
        Language(
            code="nl",
            name="Dutch",
            letters=LATIN + "áàäçéèêëíïóöôúüû",
            decimal_mark=",",
            decimal_word="komma",
            percent="procent",
            apostrophe_words=frozenset({"'s", "'t", "'n", "'k", "'m", "'r", "'ns"}),
            ordinals=dict.fromkeys(("e", "de", "ste"), SAME),
        ),
        Language(
            code="fr",
            name="French",
            letters=LATIN + "àâæçéèêëîïôœùûüÿ",
            decimal_mark=",",
            decimal_word="virgule",
            percent="pour cent",
            thousands_space=True,
            keep_hyphen=True,
            ordinals={
                "er": SAME,
                "e": SAME,
                "ème": SAME,
                "eme": SAME,
                "re": ("ier", "ière"),
                "ère": ("ier", "ière"),
            },
        ),
        Language(
            code="es",
            name="Spanish",
            letters=LATIN + "áéíñóúü",
            decimal_mark=",",
            decimal_word="coma",
            percent="por ciento",
            keep_apostrophe=False,
            ordinals=MASCULINE_AND_FEMININE,
        ),
        Language(
            code="it",
            name="Italian",
            letters=LATIN + "àèéìíîòóùú",
            decimal_mark=",",
            decimal_word="virgola",
            percent="per cento",
            apostrophe_words=_words(
                "po' mo' be' di' fa' da' va' sta' ca' a' co' de' fe' i' pe' que' su' vo' vuo' 'l 'n"
            ),
            respelled={
                "e'": "è",
                "c'e'": "c'è",
                "cos'e'": "cos'è",
                "dov'e'": "dov'è",
                "perche'": "perché",
                "poiche'": "poiché",
                "finche'": "finché",
                "benche'": "benché",
                "ne'": "né",
                "piu'": "più",
                "gia'": "già",
                "giu'": "giù",
                "puo'": "può",
                "pero'": "però",
                "cioe'": "cioè",
                "cosi'": "così",
                "sara'": "sarà",
                "citta'": "città",
                "verita'": "verità",
                "liberta'": "libertà",
                "universita'": "università",
            },
            ordinals=MASCULINE_AND_FEMININE,
        ),
        Language(
            code="pt",
            name="Portuguese",
            letters=LATIN + "áâãàçéêíóôõúü",
            decimal_mark=",",
            decimal_word="vírgula",
            percent="por cento",
            keep_hyphen=True,
            ordinals=MASCULINE_AND_FEMININE,
        ),
        Language(
            code="pl",
            name="Polish",
            letters=LATIN + "ąćęłńóśźż",
            decimal_mark=",",
            decimal_word="przecinek",
            percent="procent",
            thousands_space=True,
        ),
    )
}

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
    text = rules._punctuation.sub(" ", text)
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
    text = rules._grouped.sub(_without_spaces, text)

    def rewrite(match: re.Match[str]) -> str:
        number = rules._number.fullmatch(match[1])
        suffix = match[2] or ""
        if number is None:
            return re.sub("[.,]", " ", match[1]) + suffix
        return match[1].replace(rules.thousands_mark, "") + suffix

    return rules._figure.sub(rewrite, text)


def _spell_numbers(text: str, rules: Language) -> str:
    text = rules._grouped.sub(_without_spaces, text)
    if rules.thousands_space:
        text = rules._spaced.sub(_without_spaces, text)
    text = _PERCENT.sub(f" {rules.percent} ", text)
    words = rules._figure.sub(lambda match: f" {_in_words(match[1], match[2], rules)} ", text)
    return unicodedata.normalize("NFC", words.lower())


def _without_spaces(match: re.Match[str]) -> str:
    return re.sub(r"\s", "", match[0])


def _in_words(figure: str, suffix: str | None, rules: Language) -> str:
    """The words of one figure; one that is not a number (1.2.2024) is read part by part."""
    number = rules._number.fullmatch(figure)
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
