"""The file of a CTC tokenizer."""

from pathlib import Path

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError


def read_tokenizer(path: str | Path) -> CtcTokenizer:
    """Read a SentencePiece `.model` file.

    Raises:
        UserError: it is missing, unreadable or not a SentencePiece model.
    """
    try:
        model = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read tokenizer {path} ({error.strerror}): "
            "check the path, or make it with `python -m data_prep.tokenizer`"
        ) from error
    return CtcTokenizer(model, name=f"tokenizer {path}")
