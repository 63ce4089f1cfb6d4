"""Text to the CTC classes of a pretrained encoder's own vocabulary, of characters or of subwords, and back."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from tokenizers import Tokenizer

from speechllm_pl.core.ctc_tokenizer import BLANK, CtcTokenizer
from speechllm_pl.core.errors import UserError

SPECIAL = ("<s>", "</s>")
"""Pieces that stand for no text, beside the blank and the unknown one."""


class CharacterTokenizer(CtcTokenizer):
    """Characters of a vocabulary as CTC classes: class 0 is the blank, the others keep their order.

    A vocabulary whose letters are all upper or all lower case is given texts in its case; texts are decoded in lower
    case from upper case.

    Args:
        model: JSON of `pieces` (the blank first), `delimiter` and `unknown`, as `of_vocabulary` writes it.
        name: what error messages call it.

    Raises:
        UserError: it is something else.
    """

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        try:
            content = json.loads(model)
            self._pieces: list[str] = [str(piece) for piece in content["pieces"]]
            self._delimiter, self._unknown = content["delimiter"], content["unknown"]
            self._classes = {piece: number for number, piece in enumerate(self._pieces) if number != BLANK}
            self._unk = self._classes[self._unknown]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{name} is not a vocabulary of characters: take that of the checkpoint") from error
        self._model = model
        self._case = _case(piece for piece in self._pieces if len(piece) == 1)

    @classmethod
    def of_vocabulary(
        cls, vocabulary: Mapping[str, int], blank: str, delimiter: str, unknown: str
    ) -> "CharacterTokenizer":
        """Tokenizer of a vocabulary in which the blank may have any place.

        Raises:
            UserError: its numbers have gaps, so that a class of the head has no name.
        """
        _refuse_gaps(vocabulary)
        pieces = [blank, *(piece for piece in sorted(vocabulary, key=vocabulary.__getitem__) if piece != blank)]
        content = {"pieces": pieces, "delimiter": delimiter, "unknown": unknown}
        return cls(json.dumps(content, ensure_ascii=False).encode())

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    @property
    def unk(self) -> int:
        return self._unk

    @property
    def pieces(self) -> list[str]:
        """The name of every class; "▁" is the space between words."""
        return ["<blank>", *("▁" if piece == self._delimiter else piece for piece in self._pieces[1:])]

    def encode(self, text: str) -> list[int]:
        """CTC classes of a text, without blanks. Unknown characters become `unk`."""
        words = self._case(text).split()
        written = self._delimiter.join(words) if len(self._delimiter) == 1 else " ".join(words)
        return [self._classes.get(character, self._unk) for character in written]

    def decode(self, ids: Sequence[int]) -> str:
        if BLANK in ids:
            raise ValueError("a blank has no text: apply ctc_collapse to the path first")
        silent = {*SPECIAL, self._unknown}
        pieces = [self._pieces[int(label)] for label in ids]
        text = "".join(" " if piece == self._delimiter else piece for piece in pieces if piece not in silent)
        return " ".join((text.lower() if self._case is str.upper else text).split())


class SubwordTokenizer(CtcTokenizer):
    """Subwords of a fast tokenizer as CTC classes: class 0 is the blank, the others keep their order.

    The case of texts is treated as `CharacterTokenizer` does.

    Args:
        model: JSON of `subwords` (what a tokenizer.json holds), and the tokens `blank` and `unknown`, as `of_tokenizer`
            writes it.
        name: what error messages call it.

    Raises:
        UserError: it is something else.
    """

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        try:
            content = json.loads(model)
            self._subwords = Tokenizer.from_str(content["subwords"])
            vocabulary = self._subwords.get_vocab()
            self._blank, unknown = vocabulary[content["blank"]], vocabulary[content["unknown"]]
        except Exception as error:  # tokenizers raises nothing narrower
            raise UserError(f"{name} is not a vocabulary of subwords: take that of the checkpoint") from error
        self._subwords.no_truncation()
        self._subwords.no_padding()
        self._model = model
        self._ids = [self._blank, *sorted(set(vocabulary.values()) - {self._blank})]
        self._classes = {number: label for label, number in enumerate(self._ids)}
        self._unk = self._classes[unknown]
        silent = {self._blank, unknown, *self._subwords.get_added_tokens_decoder()}
        self._case = _case("".join(token for token, number in vocabulary.items() if number not in silent))

    @classmethod
    def of_tokenizer(cls, subwords: str, blank: str, unknown: str) -> "SubwordTokenizer":
        """Tokenizer of the content of a tokenizer.json, in which the blank may have any place.

        Raises:
            UserError: its numbers have gaps, so that a class of the head has no name.
        """
        _refuse_gaps(Tokenizer.from_str(subwords).get_vocab())
        content = {"subwords": subwords, "blank": blank, "unknown": unknown}
        return cls(json.dumps(content, ensure_ascii=False).encode())

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    @property
    def unk(self) -> int:
        return self._unk

    @property
    def pieces(self) -> list[str]:
        """The name of every class; "▁" in a piece is the space before a word."""
        return ["<blank>", *(str(self._subwords.id_to_token(number)) for number in self._ids[1:])]

    def encode(self, text: str) -> list[int]:
        """CTC classes of a text, without blanks. Unknown characters become `unk`."""
        written = " ".join(self._case(text).split())
        return [self._classes[number] for number in self._subwords.encode(written, add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int]) -> str:
        if BLANK in ids:
            raise ValueError("a blank has no text: apply ctc_collapse to the path first")
        text = self._subwords.decode([self._ids[int(label)] for label in ids if label != self._unk])
        return " ".join((text.lower() if self._case is str.upper else text).split())


def _refuse_gaps(vocabulary: Mapping[str, int]) -> None:
    """Raise a UserError where a class below the highest has no entry: those after it would be taken for others."""
    numbers = set(vocabulary.values())
    if missing := set(range(max(numbers))) - numbers:
        raise UserError(
            f"the encoder's vocabulary of {len(vocabulary)} has no entry for class {min(missing)} of its CTC head:"
            " set model.encoder.head to new"
        )


def _case(letters: Iterable[str]) -> Callable[[str], str]:
    """The function that puts a text into the case of a vocabulary's letters: `str`, which changes nothing, for both."""
    cased = [letter for letter in letters if letter.lower() != letter.upper()]
    for case in (str.upper, str.lower) if cased else ():
        if all(letter == case(letter) for letter in cased):
            return case
    return str


def restored(model: bytes) -> CtcTokenizer:
    """Restore a tokenizer of any kind from the bytes of `to_bytes`, as a checkpoint holds them."""
    kinds = {b'{"subwords"': SubwordTokenizer, b"{": CharacterTokenizer, b"": CtcTokenizer}
    return next(kind for start, kind in kinds.items() if model.startswith(start))(model)
