"""The rules of the languages whose transcripts can be normalised: alphabet, numbers, apostrophes and hyphens."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

UNKNOWN_LANGUAGE = "und"
"""Language of a recording that names none: ISO 639's code for undetermined."""

PUNCTUATION = '.,;:!?¡¿…"“”„‟‚«»‹›()[]{}/–—―‒•'
"""Characters that become a space. Spoken symbols (%, &, €, +, ...) are not among them: they stay and are reported."""

GROUP_SPACES = "\u00a0\u202f\u2009"
"""No-break and thin spaces: between groups of three digits they separate thousands in every language."""


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
    def grouped(self) -> re.Pattern[str]:
        """A number whose thousands are separated by no-break spaces."""
        return re.compile(rf"(?<![\d.,])[1-9]\d{{0,2}}(?:[{GROUP_SPACES}]\d{{3}})+(?!\d)", re.ASCII)

    @cached_property
    def spaced(self) -> re.Pattern[str]:
        """A number whose thousands are separated by ordinary spaces."""
        return re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?!\d)", re.ASCII)

    @cached_property
    def figure(self) -> re.Pattern[str]:
        """Digits with inner marks, as group 1, and an ordinal suffix, as group 2."""
        suffixes = "|".join(sorted(self.ordinals, key=len, reverse=True)) or r"(?!)"
        return re.compile(rf"([0-9]+(?:[.,][0-9]+)*)(?:({suffixes})(?!\w))?")

    @cached_property
    def number(self) -> re.Pattern[str]:
        """A well-formed number: integer part as group 1, decimals as group 2."""
        thousands, decimal = re.escape(self.thousands_mark), re.escape(self.decimal_mark)
        return re.compile(rf"([1-9]\d{{0,2}}(?:{thousands}\d{{3}})+|\d+)(?:{decimal}(\d+))?", re.ASCII)

    @cached_property
    def punctuation(self) -> re.Pattern[str]:
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
