import random
import unicodedata

import pytest

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import LANGUAGES
from speechllm_pl.core.text import normalize, strange_characters

SPELLED = [
    # German: sharp s in both cases, umlauts as letter and mark, marks of numbers, apostrophes
    ("de", "Die STRAẞE, die Straße", "die straße die straße"),
    ("de", unicodedata.normalize("NFD", "Über Öl für Mäuse"), "über öl für mäuse"),
    ("de", "1.234,5", "eintausendzweihundertvierunddreißig komma fünf"),
    ("de", "„Geht’s?“ – ‚Nein‘", "geht's nein"),
    ("de", "der E-Mail-Verkehr", "der e mail verkehr"),
    # Dutch: words that begin with an apostrophe, plurals, the ij ligature
    ("nl", "’s Ochtends foto’s van 't IJs", "'s ochtends foto's van 't ijs"),
    ("nl", "ĲSBEREN en ĳs", "ijsberen en ijs"),
    ("nl", "hij zei 'ja' en 'nee'", "hij zei ja en nee"),
    ("nl", "de 2de en 3e keer", "de tweede en derde keer"),
    ("nl", "22 ideeën", "tweeëntwintig ideeën"),
    # French: ligature letter, elision, quotation marks with no-break spaces, hyphens that belong to words
    ("fr", "L’œuf d'ŒUVRE", "l'œuf d'œuvre"),
    ("fr", "«\u00a0Est-ce l’eau\u202f?\u00a0»", "est-ce l'eau"),
    ("fr", "peut-être – ou - non", "peut-être ou non"),
    ("fr", "3 000 francs", "trois mille francs"),
    ("fr", "3\u202f000,5", "trois mille virgule cinq"),
    ("fr", "la 1re, le 1er et la 2e", "la première le premier et la deuxième"),
    ("fr", "5 %", "cinq pour cent"),
    # Spanish: opening marks, ñ as letter and mark
    ("es", "¿Qué? ¡Ven, nin\u0303o!", "qué ven niño"),
    ("es", "O'Donnell", "o donnell"),
    ("es", "el 3º y la 3ª", "el tercero y la tercera"),
    # Italian: elision, cut words; an apostrophe that may be an accent is none
    ("it", "Ne’ campi de’ fiori e’ disse", "ne' campi de' fiori e' disse"),
    ("it", "E' vero, perche'? la lettera 'e'", "e' vero perche' la lettera e"),
    ("it", "dell’Arte, un po’ 'così'", "dell'arte un po' così"),
    # Portuguese: nasal vowels, pronouns joined by hyphens
    ("pt", "Disse-me que NÃO, põe-no", "disse-me que não põe-no"),
    ("pt", "p\u00e1gina 10-20", "página dez vinte"),
    ("pt", "1.000.000", "um milhão"),
    # Polish
    ("pl", "Zażółć GĘŚLĄ jaźń, łódź", "zażółć gęślą jaźń łódź"),
    ("pl", "3 000 zł", "trzy tysiące zł"),
    ("pl", "biało-czerwony", "biało czerwony"),
    # English
    ("en", "I DON’T ‘know’ the dogs'", "i don't know the dogs"),
    ("en", "1,234.5", "one thousand two hundred and thirty four point five"),
    ("en", "the 21st of May", "the twenty first of may"),
    ("en", "sheet A4", "sheet a four"),
    ("en", "in 2024", "in two thousand and twenty four"),
    ("en", "at 12:30", "at twelve thirty"),
    ("en", "1.2.2024", "one two two thousand and twenty four"),
    ("en", "agent 007", "agent zero zero seven"),
    ("en", "well…yes—no–maybe", "well yes no maybe"),
    ("en", "co\u00adop\u200be\u2060ra\ufefftion", "cooperation"),
    ("en", "a\u00a0b\u2003c\t\nd  ", "a b c d"),
    ("en", "well‑known", "well known"),
    ("en", "''quoted'' ``too´´", "quoted too"),
    ("en", " … ?!", ""),
    ("en", "", ""),
]

RESPELLED = [
    ("it", "E' vero, è vero", "è vero è vero"),
    ("it", "Perché? perche'", "perché perché"),
    ("it", "un po' di 'e'", "un po' di e"),
]

KEPT = [
    ("de", "1.234,5 kg.", "1234,5 kg"),
    ("en", "1,234.5 kg, 21st A4", "1234.5 kg 21st a4"),
    ("fr", "3 000 et 3\u202f000", "3 000 et 3000"),
    ("pl", "1,5, 2,5.", "1,5 2,5"),
    ("en", "12:30 on 1.2.2024", "12 30 on 1 2 2024"),
]


@pytest.mark.parametrize(("language", "text", "expected"), SPELLED)
def test_normalized_text_is_what_is_said(language, text, expected):
    assert normalize(text, language) == expected


@pytest.mark.parametrize(("language", "text", "expected"), RESPELLED)
def test_accents_that_stand_as_apostrophes_are_respelled_where_that_is_asked_for(language, text, expected):
    assert normalize(text, language, respell=True) == expected


@pytest.mark.parametrize(("language", "text", "expected"), KEPT)
def test_kept_digits_lose_only_their_thousands_marks(language, text, expected):
    assert normalize(text, language, digits="keep") == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_spelled_numbers_need_nothing_outside_the_alphabet(language):
    numbers = [*range(130), 999, 1000, 1001, 21_000, 10**6, 2 * 10**6 + 1, 10**9, 10**12 - 1, 10**15]
    text = " ".join(map(str, [*numbers, "3" + LANGUAGES[language].decimal_mark + "14"]))
    spelled = normalize(text, language)
    assert not any(character.isdigit() for character in spelled)
    assert strange_characters(spelled, language) == {}


@pytest.mark.parametrize("respell", [False, True])
@pytest.mark.parametrize("digits", ["keep", "spell"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_normalizing_twice_changes_nothing(language, digits, respell):
    pool = [*"aeépoñsß's'’‘`´\"-–.,:;…«»()  \t\u00a0\u202f0123456789000%ºª\u0301\u0308\u0303\u0338\u00ad\u200b"]
    pool += [
        *"œIİΣſΑдЖ😀\u1100\u1161\u11a8=<",
        "\u1fef",
        "\u1ffd",
        "e'",
        "po'",
        "'s",
        "1.234,5",
        "3 000",
        "l’",
    ]
    pool += ["ĳ", "Ĳ", "ﬁ", "st", "er", "ste", "1\u00a0000", "--", "''"]
    rng = random.Random(language + digits)
    for _ in range(2000):
        text = "".join(rng.choice(pool) for _ in range(rng.randint(1, 14)))
        text += chr(rng.randrange(0x20, 0x3000))
        once = normalize(text, language, digits=digits, respell=respell)
        assert normalize(once, language, digits=digits, respell=respell) == once, ascii(text)
        assert unicodedata.is_normalized("NFC", once)
        assert once == " ".join(once.split())


@pytest.mark.parametrize("language", LANGUAGES)
def test_letters_and_symbols_are_never_lost(language):
    """Whatever is neither space, mark nor invisible in the input is still there, as often as before."""
    rng = random.Random(language)
    pool = "abcxyzäéñøжЖ漢😀€&+=#@§µ" + LANGUAGES[language].letters
    for _ in range(300):
        text = "".join(rng.choice(pool + " ,.-'") for _ in range(20))
        kept = normalize(text, language)
        assert sorted(c for c in kept if c not in " -'") == sorted(c for c in text.lower() if c not in " ,.-'")


def test_strange_characters_are_kept_and_counted():
    text = "The сat says 😀 and 😀, café — fine!"
    assert "сat" in normalize(text, "en")  # its first letter is Cyrillic
    assert strange_characters(text, "en") == {"😀": 2, "с": 1, "é": 1}


def test_the_alphabet_of_one_language_is_strange_in_another():
    assert strange_characters("łódź", "pl") == {}
    assert strange_characters("łódź", "en") == {"ł": 1, "ó": 1, "ź": 1}
    assert strange_characters("straße", "de") == {}
    assert strange_characters("l'eau, peut-être 3,5", "fr") == {}
    assert strange_characters("5 € & 5%", "de") == {"€": 1, "&": 1, "%": 1}


@pytest.mark.parametrize("function", [normalize, strange_characters])
def test_an_unknown_language_is_named_with_the_known_ones(function):
    with pytest.raises(UserError, match=r"'xx'.*de, en, es, fr, it, nl, pl, pt"):
        function("text", "xx")
