"""A tokenizer's file: what is read, and what is refused by name."""

from pathlib import Path

import pytest

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.tokenizers import read_tokenizer


def test_a_file_gives_the_tokenizer_that_it_was_written_from(ctc_tokenizer: CtcTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ctc_tokenizer.to_bytes())
    read = read_tokenizer(str(path))
    assert read.pieces == ctc_tokenizer.pieces
    assert read.encode("one two three") == ctc_tokenizer.encode("one two three")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.model"):
        read_tokenizer(tmp_path / "absent.model")


@pytest.mark.parametrize("content", [b"", b"just some text\n", bytes(64), b"\x0a\x05"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"wrong\.model"):
        read_tokenizer(path)


def test_a_truncated_model_is_refused(tmp_path: Path, ctc_tokenizer: CtcTokenizer) -> None:
    path = tmp_path / "short.model"
    model = ctc_tokenizer.to_bytes()
    path.write_bytes(model[: len(model) // 2])
    with pytest.raises(UserError, match=r"short\.model"):
        read_tokenizer(path)
