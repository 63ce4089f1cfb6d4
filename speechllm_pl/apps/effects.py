"""Language and decoder that a user asks a checkpoint for: refused if unknown to it, told if without effect."""

from pathlib import Path

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import LANGUAGES, UNKNOWN_LANGUAGE
from speechllm_pl.core.prompt import Prompt
from speechllm_pl.recognition.decoding_options import Decoder
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


def decoder_without_effect(recognizer: Recognizer, decoder: Decoder) -> str:
    """Why a decoder has no effect; empty if it has."""
    if recognizer.stage == "llm" or decoder not in ("speculative", "beam"):
        return ""
    return f"--decoder {decoder} has no effect: the checkpoint is of stage 1, without an LLM"
