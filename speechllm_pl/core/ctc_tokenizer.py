"""Text to CTC classes and back: a SentencePiece model with the blank in front.

The blank is class 0 whatever the vocabulary, so that losses, collapsing and alignments need not be told
where it is; class k + 1 is piece k.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

from sentencepiece import SentencePieceProcessor

from speechllm_pl.core.errors import UserError

BLANK = 0


def ctc_collapse(ids: Iterable[int], blank: int = BLANK) -> list[int]:
    """The labels of a frame-by-frame path: repeats merged, then blanks removed."""
    return [label for label, _ in groupby(ids) if label != blank]


class CtcTokenizer:
    """A SentencePiece model whose pieces are CTC classes 1 ... V; class 0 is the blank.

    Args:
        model: the serialized SentencePiece model, the content of a `.model` file.
        name: what error messages call it.

    Raises:
        UserError: the bytes are not a SentencePiece model.
    """

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        # Checked here because SentencePiece accepts nothing at all as a model without pieces.
        if not model:
            raise UserError(f"{name} is empty: make it with `python -m data_prep.tokenizer`")
        self._model = model
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise UserError(
                f"{name} is not a SentencePiece model: make one with `python -m data_prep.tokenizer`"
            ) from error

    @classmethod
    def from_bytes(cls, model: bytes) -> "CtcTokenizer":
        """Restore a SentencePiece tokenizer from the bytes of `to_bytes`."""
        return cls(model)

    def to_bytes(self) -> bytes:
        return self._model

    @property
    def vocab_size(self) -> int:
        """Number of CTC classes: the pieces and the blank."""
        return self._processor.GetPieceSize() + 1

    @property
    def unk(self) -> int:
        """Class of characters that the model does not know."""
        return self._processor.unk_id() + 1

    @property
    def pieces(self) -> list[str]:
        """The name of every class; "▁" in a piece is the space before a word."""
        processor = self._processor
        return ["<blank>", *(processor.IdToPiece(piece) for piece in range(processor.GetPieceSize()))]

    def encode(self, text: str) -> list[int]:
        """CTC classes of a text, without blanks. Unknown characters become `unk`."""
        return [piece + 1 for piece in self._processor.EncodeAsIds(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of CTC classes without blanks; repeats are kept, since a word may hold the same piece twice.

        Raises:
            ValueError: there is a blank: `ctc_collapse` the frame-by-frame path first.
        """
        if BLANK in ids:
            raise ValueError("a blank has no text: apply ctc_collapse to the path first")
        # A frame-by-frame path may hold a lone word mark before a word, which would be two spaces.
        return " ".join(self._processor.DecodeIds([int(label) - 1 for label in ids]).split())

    def unknown_characters(self, text: str) -> set[str]:
        """Characters of the text that the model cannot write."""
        return {character for character in set(text) if self.unk in self.encode(character)}
