"""Typed results of transcribing a recording: text, pieces, and words with their times."""

from dataclasses import dataclass
from typing import Literal

from speechllm_pl.recognition.hypothesis import Alternative
from speechllm_pl.recognition.word_times import Word

DecodedBy = Literal["llm", "llm-retried", "ctc", "silence"]
"""Origin of a piece's text: the LLM, the LLM when asked again, the CTC head; `silence` where that heard nothing, or is
unsure of it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a recording that was decoded at once.

    Attributes:
        start_seconds, end_seconds: times in the recording.
        text: what is said there; empty where nothing is.
        words: words of the text, with their times in the recording.
        decoded_by: origin of the text.
        remark: why the text is not the first one that was found, or may be wrong; empty if there is nothing to say.
        alternatives: texts that a search by beams found for the piece by itself, `text` among them unless words that
            its neighbour has too were left out of it; the best one first.
    """

    start_seconds: float
    end_seconds: float
    text: str
    words: tuple[Word, ...]
    decoded_by: DecodedBy
    remark: str = ""
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said in a recording.

    Attributes:
        seconds: length of the recording.
        language: code of the language that the model was told, if any.
        pieces: pieces in the order of time, which cover the recording; they overlap where there is no pause.
    """

    seconds: float
    language: str | None
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        return " ".join(piece.text for piece in self.pieces if piece.text)

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(word for piece in self.pieces for word in piece.words)

    @property
    def decoded_by(self) -> str:
        """Origins of the text, each once, joined by commas."""
        return ",".join(dict.fromkeys(piece.decoded_by for piece in self.pieces if piece.text)) or "silence"
