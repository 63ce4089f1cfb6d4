"""Lines of JSON that terminals and files can take, and remarks about pieces."""

import json
import re
from typing import Any

from speechllm_pl.recognition.transcript import Piece

RAW_IN_JSON = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that `json.dumps` keeps and that terminals or files cannot take: control characters, and lone surrogates,
by which Python represents bytes in a file's name that are not UTF-8."""

BEHIND_REMARK = {
    "llm": "",
    "llm-retried": ", so it was asked again",
    "ctc": ", so this is what the CTC head heard",
    "silence": ", so this is taken for silence",
}
"""Continuation of a remark about a piece, by the origin of its text."""


def json_line(row: dict[str, Any]) -> str:
    return RAW_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(row, ensure_ascii=False))


def warning_of(piece: Piece, name: str, place: bool) -> str:
    """Warning for a piece with a remark; empty without one.

    Args:
        name: name of the recording, printable.
        place: whether to say where the piece is.
    """
    if not piece.remark:
        return ""
    where = f", {seconds_in_words(piece)}" if place else ""
    return f"warning: {name}{where}: {piece.remark}{BEHIND_REMARK[piece.decoded_by]}"


def seconds_in_words(piece: Piece) -> str:
    return f"{piece.start_seconds:.1f} to {piece.end_seconds:.1f} s"
