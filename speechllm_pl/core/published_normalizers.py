"""Text normalisers of published packages, under which error rates of different systems are compared.

Ours (`core/text.py`) decides what is learned and scored; these are others' conventions, taken as they are.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Literal

from speechllm_pl.core.errors import UserError

Normalizer = Literal["none", "whisper", "whisper-basic"]
"""Whisper's rules for English and its basic ones for other languages, or the basic ones for every language."""

PACKAGE = "whisper-normalizer"


def package_version() -> str:
    """Name and version of the package."""
    return f"{PACKAGE} {version(PACKAGE)}"


def published_normalizer(name: Normalizer) -> Callable[[str, str], str] | None:
    """Return the function from a text and its language to the normalised text; None if `name` is `none`.

    Raises:
        UserError: the package is not installed.
    """
    if name == "none":
        return None
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise UserError(f"--normalizer {name} needs the package {PACKAGE}: pip install -e '.[normalizer]'") from error
    basic, english = BasicTextNormalizer(), EnglishTextNormalizer()
    return lambda text, language: (english if name == "whisper" and language == "en" else basic)(text)
