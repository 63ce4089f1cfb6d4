"""Prepared data as columns: what one look at every transcript tells, in 41 bytes an utterance.

Twelve million utterances are half a gigabyte so, where as many Python objects would be tens. Texts, ids and speakers
become hashes of 8 bytes. That two of twelve million different texts share one has a chance of 1 in 250,000.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice, product
from pathlib import Path

import numpy as np
from lhotse.cut import Cut

from speechllm_pl.analysis.data.letters import FOLDS, LetterModels
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import LANGUAGES
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.storage.progress import progress_bar

SPLITS = ("train", "dev", "test")

NOBODY = ("", "unknown")
"""Values of `speaker` in manifests that mean an unknown speaker."""

EXAMPLES = 3
"""Number of example utterances kept for each character outside the alphabet."""


@dataclass(frozen=True)
class PreparedData:
    """N utterances of all splits, one after another.

    Columns hold a value an utterance; `split` and `language` are positions in `splits` and `languages`.
    """

    splits: Mapping[str, Sequence[Cut]]
    languages: list[str]
    split: np.ndarray  # (N,) uint8
    language: np.ndarray  # (N,) uint16
    seconds: np.ndarray  # (N,) float32
    characters: np.ndarray  # (N,) uint32, spaces between words included
    words: np.ndarray  # (N,) uint32
    text: np.ndarray  # (N,) uint64 hash; 0: no text
    id: np.ndarray  # (N,) uint64 hash
    speaker: np.ndarray  # (N,) uint64 hash; 0: not known
    alphabet: np.ndarray  # (N,) uint16: 0, or 1 + position in LANGUAGES of that whose alphabet fits instead
    counts: Mapping[str, Counter[str]]  # characters by language
    examples: Mapping[tuple[str, str], list[int]]  # (language, strange character) → utterances

    def __len__(self) -> int:
        return len(self.split)

    def cut(self, utterance: int) -> Cut:
        first = int(np.searchsorted(self.split, self.split[utterance]))
        return self.splits[self.split_of(utterance)][int(utterance) - first]

    def split_of(self, utterance: int) -> str:
        return list(self.splits)[self.split[utterance]]

    def language_of(self, utterance: int) -> str:
        return self.languages[self.language[utterance]]

    def in_split(self, name: str) -> np.ndarray:
        """Mask of the utterances of a split: `(N,)` bool."""
        return self.split == list(self.splits).index(name)

    def in_language(self, code: str) -> np.ndarray:
        """Mask of the utterances of a language: `(N,)` bool."""
        return self.language == self.languages.index(code)

    def groups(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """Split, language and mask of the utterances of each split and language that has some."""
        for split, language in product(self.splits, sorted(self.languages)):
            if (mask := self.in_split(split) & self.in_language(language)).any():
                yield split, language, mask


def open_splits(root: Path, *, allow_commands: bool = False) -> dict[str, Sequence[Cut]]:
    """Open those of train, dev and test that exist, as manifests or in `shar`.

    Args:
        allow_commands: accept cuts of manifests whose audio comes from shell commands or over the network.

    Raises:
        UserError: there is none, or a manifest is broken.
    """
    found = {}
    for split in SPLITS:
        paths = [root / f"{split}.jsonl.gz", root / f"{split}.jsonl", root / "shar" / split]
        if path := next((path for path in paths if path.exists()), None):
            found[split] = read_cuts(path, allow_commands=allow_commands)
    if not found:
        raise UserError(f"{root} has none of train, dev and test.jsonl.gz: prepare the data first, or correct --root")
    return found


def read_through(splits: Mapping[str, Sequence[Cut]]) -> tuple[PreparedData, LetterModels]:
    """Read every cut once, into columns and letter models.

    Raises:
        UserError: a line is no cut.
    """
    reader = _Reader()
    for number, (split, cuts) in enumerate(splits.items()):
        for cut in in_turn(cuts, f"transcripts of {split}"):
            reader.add(cut, number)
    return reader.data(splits), reader.letters


def in_turn(cuts: Sequence[Cut], what: str) -> Iterator[Cut]:
    """Iterate over the cuts with a progress bar, without reading their audio."""
    cut_at = getattr(cuts, "without_audio", cuts.__getitem__)
    with progress_bar(what, len(cuts), unit=" utterances") as bar:
        for position in range(len(cuts)):
            yield cut_at(position)
            bar.update()


def transcript(cut: Cut) -> str:
    """Text of a cut, its words separated by single spaces."""
    return " ".join((cut.supervisions[0].text or "").split())


def hash_of(text: str) -> int:
    """Hash of 64 bits, the same in every process and run."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def alphabet_that_fits(letters: set[str], language: str) -> int:
    """Another language whose alphabet holds all `letters`, when two or more of them are foreign to `language`.

    Returns:
        1 + the first such language's position in LANGUAGES, or 0.
    """
    if len(letters - LANGUAGES[language].known_characters) < 2:
        return 0  # one letter is a name or a loan word more often than another language
    fitting = (number for number, rules in enumerate(LANGUAGES.values(), 1) if letters <= rules.known_characters)
    return next(fitting, 0)


class _Reader:
    """Columns while they are being filled."""

    def __init__(self) -> None:
        kinds = {"split": "B", "language": "H", "seconds": "f", "characters": "I", "words": "I"}
        kinds |= {"text": "Q", "id": "Q", "speaker": "Q", "alphabet": "H"}
        self.columns = {name: array(kind) for name, kind in kinds.items()}
        self.languages: dict[str, int] = {}
        self.counts: dict[str, Counter[str]] = {}
        self.examples: dict[tuple[str, str], list[int]] = {}
        self.letters = LetterModels()

    def add(self, cut: Cut, split: int) -> None:
        supervision = cut.supervisions[0]
        language, speaker = supervision.language or "und", supervision.speaker or ""
        text = transcript(cut)
        hashed = hash_of(text) if text else 0
        row = {
            "split": split,
            "language": self.languages.setdefault(language, len(self.languages)),
            "seconds": cut.duration,
            "characters": len(text),
            "words": text.count(" ") + 1 if text else 0,
            "text": hashed,
            "id": hash_of(cut.id),
            "speaker": 0 if speaker in NOBODY else hash_of(speaker),
            "alphabet": self._look_at_letters(text, language),
        }
        for name, value in row.items():
            self.columns[name].append(value)
        self.letters.add(text, language, fold_of(hashed))

    def _look_at_letters(self, text: str, language: str) -> int:
        self.counts.setdefault(language, Counter()).update(text)
        if language not in LANGUAGES:
            return 0
        letters = set(text)
        strange = letters - LANGUAGES[language].known_characters
        for character in strange:
            examples = self.examples.setdefault((language, character), [])
            if len(examples) < EXAMPLES:
                examples.append(len(self.columns["split"]))
        return alphabet_that_fits(letters, language) if strange else 0

    def data(self, splits: Mapping[str, Sequence[Cut]]) -> PreparedData:
        columns = {name: np.frombuffer(column, column.typecode) for name, column in self.columns.items()}
        return PreparedData(splits, list(self.languages), **columns, counts=self.counts, examples=self.examples)


def fold_of(text_hash: int) -> int:
    """Fold of the letter models, the same for equal texts."""
    return text_hash % FOLDS


def judged_by_letters(data: PreparedData, letters: LetterModels, chunk: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Read all transcripts again to see how much better each fits another language of the corpus than its own.

    Returns:
        `(N,)` float32 nats by which the best other language is ahead, -inf where nothing can be compared; and
        `(N,)` int16 its position in `letters.languages()`.
    """
    known = letters.languages()
    ahead, best = np.full(len(data), -np.inf, np.float32), np.zeros(len(data), np.int16)
    if not known:
        return ahead, best
    columns = np.array([known.index(code) if code in known else -1 for code in data.languages])
    every = (transcript(cut) for split, cuts in data.splits.items() for cut in in_turn(cuts, f"languages of {split}"))
    for begin in range(0, len(data), chunk):
        rows, texts = slice(begin, begin + chunk), list(islice(every, chunk))
        scores = letters.scores(texts, [fold_of(int(hashed)) for hashed in data.text[rows]])
        own = columns[data.language[rows]]
        place = np.arange(len(texts))
        own_scores = np.where(own >= 0, scores[place, own], np.inf)
        scores[place[own >= 0], own[own >= 0]] = -np.inf
        best[rows] = scores.argmax(1)
        ahead[rows] = scores.max(1) - own_scores
    return ahead, best
