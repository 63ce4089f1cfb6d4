"""Language and options of an LLM that a user asks a checkpoint for: refused if unknown, told if without effect."""

import sys
from pathlib import Path

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import LANGUAGES, UNKNOWN_LANGUAGE
from speechllm_pl.core.prompt import Prompt
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.checkpoints import RECORD, read_record


def language_without_effect(checkpoint: str | Path, language: str) -> str:
    """Why a language has no effect; empty if it has.

    Raises:
        UserError: the checkpoint was not trained on this language.
    """
    if language == UNKNOWN_LANGUAGE:
        return ""
    record = read_record(checkpoint)[RECORD]  # earlier versions do not list the languages of training
    known = record.get("languages") or sorted(LANGUAGES)
    if language not in known:
        raise UserError(f"--language {language!r} is unknown: give one of {', '.join(known)}, or leave it out")
    named = Prompt(record["settings"].get("instruction", "")).names_language
    told = f"--language {language} has no effect: the checkpoint's instruction names no language"
    return "" if named else told


def llm_without_effect(recognizer: Recognizer, options: DecodingOptions, llm: str | None) -> str:
    """Why options of an LLM have no effect; empty if they have, or none is given."""
    decoder = options.decoder if options.decoder in ("speculative", "beam") else None
    of_llm = {
        "decoder": decoder,
        "max_new_tokens": options.max_new_tokens,
        "accept_entropy": options.accept_entropy,
        "llm": llm,
    }
    given = [f"--{name} {value}" for name, value in of_llm.items() if value is not None]
    if recognizer.stage == "llm" or not given:
        return ""
    have = "has" if len(given) == 1 else "have"
    return f"{', '.join(given)} {have} no effect: the checkpoint is of stage 1, without an LLM"


def tell(warning: str) -> None:
    """Print a warning, unless it is empty."""
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
