"""Test bed of `make adapt-text`: a kind of number that a corpus of spoken numbers lacks, 1,000 to 9,999.

    python benchmarks/text_adaptation.py --output data/spoken_numbers

Writes beside the manifests of `data_prep.spoken_numbers` (whose largest numbers are 999, and years as these are said):

- thousands.txt: for TEXT, 500 such numbers of each language;
- thousands.jsonl.gz: others, for SPLIT, in voices of the test set;
- thousands-5, -20, -100.jsonl.gz: such a per cent of `--spoken` of the numbers of TEXT, in voices of the training set:
  audio that TEXT might replace.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lhotse import CutSet, MonoCut
from num2words import num2words

from data_prep.spoken_numbers import ACCENTS, MAX_LETTERS, SpokenNumber, cut_of, drawn_voice, split_of_text
from speechllm_pl.core.text import normalize

PER_CENT = (5, 20, 100)
TEXTS = 500  # of each language
MAX_SECONDS = 30.0


def numbers(language: str, split: str) -> list[tuple[str, str]]:
    """Texts of the numbers that belong to a split, as they are written and as they are said, in random order."""
    found = []
    for number in np.random.default_rng(1).permutation(np.arange(1_000, 10_000)):
        spoken = num2words(int(number), lang=language)
        text = normalize(spoken.replace("-", " "), language)
        if split_of_text(text) == split and len(text) <= MAX_LETTERS:
            found.append((text, spoken))
    return found


def said(language: str, split: str, texts: Sequence[tuple[str, str]], folder: Path) -> list[MonoCut]:
    """Cuts of texts in voices of a split, with their audio."""
    rng = np.random.default_rng([list(ACCENTS).index(language), split == "test"])
    cuts = []
    for number, (text, spoken) in enumerate(texts):
        name = f"{language}-thousand-{split}-{number:03d}"
        utterance = SpokenNumber(
            id=name,
            path=folder / "audio" / "thousands" / f"{name}.flac",
            text=text,
            language=language,
            split=split,
            spoken=spoken,
            **drawn_voice(language, split, rng),
            noise_seed=int(rng.integers(2**31)),
        )
        cuts.append(cut_of(utterance, MAX_SECONDS))
    return cuts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="Folder of spoken numbers (make data).")
    parser.add_argument("--languages", nargs="+", default=list(ACCENTS), help="Languages (default: all).")
    parser.add_argument("--tested", type=int, default=20, help="Utterances to test of each language (default: 20).")
    parser.add_argument("--spoken", type=int, default=40, help="Utterances to train on, likewise (default: 40).")
    args = parser.parse_args()
    texts = {language: numbers(language, "train")[:TEXTS] for language in args.languages}
    lines = [f"{language}\t{text}\n" for language in texts for text, _ in texts[language]]
    (args.output / "thousands.txt").write_text("".join(lines))
    made = {"thousands": [], **{f"thousands-{share}": [] for share in PER_CENT}}
    for language in args.languages:
        tested = numbers(language, "test")[: args.tested]
        made["thousands"] += said(language, "test", tested, args.output)
        spoken = said(language, "train", texts[language][: args.spoken], args.output)
        for share in PER_CENT:
            made[f"thousands-{share}"] += spoken[: round(share * len(spoken) / 100)]
    for name, cuts in made.items():
        CutSet.from_cuts(cuts).to_file(args.output / f"{name}.jsonl.gz")
        print(f"{name}: {len(cuts)} utterances, {sum(cut.duration for cut in cuts) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
