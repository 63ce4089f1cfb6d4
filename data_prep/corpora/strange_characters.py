"""Characters outside the alphabet of their language: they stay in the transcripts, and are told."""

from collections import Counter
from dataclasses import dataclass, field

from speechllm_pl.core.errors import printable
from speechllm_pl.core.languages import LANGUAGES


@dataclass
class StrangeCharacters:
    """How often each occurs, and one utterance to look at."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (language, character)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, text: str, language: str, utterance_id: str) -> None:
        """A transcript as it is to be learned from."""
        for character in set(text) - LANGUAGES[language].known_characters:
            self.counts[language, character] += text.count(character)
            self.examples.setdefault((language, character), utterance_id)

    def tell(self) -> None:
        """Print them, if there are any: those of a language together, the most frequent first."""
        if not self.counts:
            return
        print("characters outside the alphabet of their language (kept in the transcripts):")
        for (language, character), count in sorted(self.counts.items(), key=lambda item: (item[0][0], -item[1])):
            example = self.examples[language, character]
            print(f"  {language}  {character!r} U+{ord(character):04X} {count:>6}  for example in {printable(example)}")
