"""A warning about a piece says where it is, what is wrong, and whose text it has."""

from typing import get_args

import pytest

from speechllm_pl.apps.transcript_lines import warning_of
from speechllm_pl.recognition.transcript import DecodedBy, Piece


@pytest.mark.parametrize("decoded_by", get_args(DecodedBy))
def test_every_piece_with_a_remark_has_a_warning(decoded_by: DecodedBy) -> None:
    piece = Piece(1.0, 2.5, "", (), decoded_by, "it is odd")
    assert warning_of(piece, "talk.wav", place=True).startswith("warning: talk.wav, 1.0 to 2.5 s: it is odd")
    assert warning_of(Piece(1.0, 2.5, "", (), decoded_by), "talk.wav", place=True) == ""


def test_what_the_ctc_head_is_unsure_of_is_said_to_be_taken_for_silence() -> None:
    assert warning_of(Piece(0.0, 1.0, "", (), "silence", "x"), "a", place=False).endswith("taken for silence")
