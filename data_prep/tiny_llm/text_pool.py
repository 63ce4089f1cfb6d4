"""Texts that the LLM is trained on: transcripts, their parts, and new texts made of these."""

import random
from collections.abc import Sequence
from pathlib import Path

from data_prep.corpora.transcripts import read_transcripts
from speechllm_pl.core.errors import UserError

FEW = 200  # transcripts, with fewer of which an LLM learns them, and not to write


def read_texts(manifests: Sequence[Path]) -> dict[str, list[str]]:
    """Distinct transcripts of Lhotse manifests by language, in the manifests' order.

    Raises:
        UserError: a manifest is missing or broken, or holds no transcript.
    """
    texts: dict[str, dict[str, None]] = {}  # the inner dict is an ordered set
    for language, text in read_transcripts(manifests):
        texts.setdefault(language, {})[text] = None
    return {language: list(of_language) for language, of_language in texts.items()}


def too_few(texts: dict[str, list[str]]) -> str:
    """Advice where there is too little text to make an LLM of; empty where there is enough."""
    count = sum(map(len, texts.values()))
    if count >= FEW:
        return ""
    return (
        f"{count} different transcripts are too few to make an LLM of, which takes minutes all the same: interrupt it,"
        f" and give a pretrained one, such as LLM=bloom-560m (from {FEW} on it is worth it)"
    )


class TextPool:
    """Training texts: transcripts, parts of them, and new texts spliced from parts.

    Args:
        texts: transcripts by language; splices stay inside one language.
        held_out: texts that are never drawn, not even by chance.
        recombined: the share of texts that are spliced rather than transcripts as they are.
    """

    def __init__(self, texts: dict[str, list[str]], held_out: set[str], recombined: float = 0.7) -> None:
        self.held_out = held_out
        self.recombined = recombined
        kept = {language: [t for t in of if t not in held_out] for language, of in texts.items()}
        self.transcripts = [[t.split() for t in of] for of in kept.values() if of]
        self.sizes = [len(of) for of in self.transcripts]
        self.longest = max((len(words) for of in self.transcripts for words in of), default=0)
        if not self.longest:
            raise UserError("every training text is held out; give another --dev-manifest")

    def draw(self, rng: random.Random, max_words: int) -> str:
        """Draw a text of at most `max_words` words."""
        while True:
            transcripts = rng.choices(self.transcripts, self.sizes)[0]
            words = rng.choice(transcripts)
            if len(words) > max_words or rng.random() < self.recombined:
                words = self._splice(transcripts, rng, max_words)
            if (text := " ".join(words)) not in self.held_out:
                return text

    def _splice(self, transcripts: list[list[str]], rng: random.Random, max_words: int) -> list[str]:
        wanted = rng.randint(1, max_words)
        words: list[str] = []
        while len(words) < wanted:
            source = rng.choice(transcripts)
            start = rng.randrange(len(source))
            words += source[start : start + rng.randint(1, 6)]
        return words[:wanted]


def hold_out(texts: dict[str, list[str]], dev: dict[str, list[str]] | None, rng: random.Random) -> list[str]:
    """Choose the texts to measure copying on: those of dev, else 2 % of the transcripts, at least one."""
    if dev is not None:
        return [text for of_language in dev.values() for text in of_language]
    everything = [text for of_language in texts.values() for text in of_language]
    return rng.sample(everything, max(1, len(everything) // 50)) if len(everything) > 1 else everything
