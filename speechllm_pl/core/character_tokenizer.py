"""Text to the CTC classes of a pretrained encoder's own vocabulary of characters, and back."""

import json
from collections.abc import Mapping, Sequence

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
        letters = [piece for piece in self._pieces if len(piece) == 1 and piece.lower() != piece.upper()]
        self._upper = bool(letters) and all(letter == letter.upper() for letter in letters)
        self._lower = bool(letters) and all(letter == letter.lower() for letter in letters)

    @classmethod
    def of_vocabulary(
        cls, vocabulary: Mapping[str, int], blank: str, delimiter: str, unknown: str
    ) -> "CharacterTokenizer":
        """Tokenizer of a vocabulary in which the blank may have any place."""
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
        text = text.upper() if self._upper else text.lower() if self._lower else text
        written = self._delimiter.join(text.split()) if len(self._delimiter) == 1 else " ".join(text.split())
        return [self._classes.get(character, self._unk) for character in written]

    def decode(self, ids: Sequence[int]) -> str:
        if BLANK in ids:
            raise ValueError("a blank has no text: apply ctc_collapse to the path first")
        silent = {*SPECIAL, self._unknown}
        pieces = [self._pieces[int(label)] for label in ids]
        text = "".join(" " if piece == self._delimiter else piece for piece in pieces if piece not in silent)
        return " ".join((text.lower() if self._upper else text).split())


def restored(model: bytes) -> CtcTokenizer:
    """Restore a tokenizer of either kind from the bytes of `to_bytes`, as a checkpoint holds them."""
    return CharacterTokenizer(model) if model.startswith(b"{") else CtcTokenizer.from_bytes(model)
