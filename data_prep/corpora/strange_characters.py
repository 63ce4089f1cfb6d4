"""Characters outside the alphabet of their language: they stay in the transcripts, and are told."""

from collections import Counter
from dataclasses import dataclass, field

from speechllm_pl.core.errors import printable
from speechllm_pl.core.languages import LANGUAGES


@dataclass
class StrangeCharacters:
    """Counts of characters, with one utterance to look at for each."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (language, character)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, text: str, language: str, utterance_id: str) -> None:
        """Count the strange characters of a transcript."""
        for character in set(text) - LANGUAGES[language].known_characters:
            self.counts[language, character] += text.count(character)
            self.examples.setdefault((language, character), utterance_id)

    def tell(self) -> None:
        """Print what was found, if anything, language by language, the most frequent first."""
        if not self.counts:
            return
        print("characters outside the alphabet of their language (kept in the transcripts):")
        for (language, character), count in sorted(self.counts.items(), key=lambda item: (item[0][0], -item[1])):
            example = self.examples[language, character]
            print(f"  {language}  {character!r} U+{ord(character):04X} {count:>6}  for example in {printable(example)}")
