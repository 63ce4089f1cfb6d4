"""Test bed of `make adapt-text`: spoken numbers whose years have text and no audio.

    python benchmarks/text_adaptation.py --corpus data/spoken_numbers --output data/no_years --languages de es fr

Takes some languages of a corpus of spoken numbers, and from their training audio every utterance that is a year (
*neunzehnhundertvierundachtzig*, *mil novecientos ochenta y cuatro*). Writes into `--output`:

- train, dev.jsonl.gz without years;
- others.jsonl.gz, what is no year in the corpus's test set; years.jsonl.gz, years in the voices of the test set;
- target-5, target-10, ….jsonl.gz: such a per cent of the training audio that was taken out, the rate of a recording
  that TEXT might replace;
- years.txt: for TEXT, all years of the training split; none of them is in years.jsonl.gz.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lhotse import CutSet, MonoCut
from num2words import num2words

from data_prep.spoken_numbers import ACCENTS, VARIANTS, SpokenNumber, cut_of, split_of_text
from speechllm_pl.core.text import normalize

PER_CENT = (5, 10, 20, 50, 100)
MAX_SECONDS = 30.0


def years(language: str) -> dict[str, str]:
    """Years by their normalised text, as they are said."""
    said = [num2words(year, lang=language, to="year") for year in range(1100, 2100)]
    return {normalize(each.replace("-", " "), language): each for each in said}


def spoken_years(language: str, count: int, output: Path) -> Iterator[MonoCut]:
    """Years of the test split in voices of the test set."""
    rng = np.random.default_rng([1, list(ACCENTS).index(language)])
    texts = [(text, said) for text, said in years(language).items() if split_of_text(text) == "test"]
    for number in rng.permutation(len(texts))[:count]:
        text, spoken = texts[number]
        name = f"{language}-year-{number:03d}"
        utterance = SpokenNumber(
            id=name,
            path=(output / "audio" / f"{name}.flac").absolute(),
            text=text,
            language=language,
            speaker=f"{rng.choice(ACCENTS[language])}+{rng.choice(VARIANTS['test'])}",
            split="test",
            spoken=spoken,
            words_per_minute=int(rng.integers(130, 211)),
            pitch=int(rng.integers(25, 76)),
            noise_seed=int(rng.integers(2**31)),
        )
        yield cut_of(utterance, MAX_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="Folder of spoken numbers (make data).")
    parser.add_argument("--output", type=Path, required=True, help="Folder of the test bed.")
    parser.add_argument("--languages", nargs="+", default=["de", "es", "fr"], help="Languages (default: de es fr).")
    parser.add_argument("--test_years", type=int, default=60, help="Years to test of each language (default: 60).")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    known = {language: years(language) for language in args.languages}

    def write(name: str, cuts: list) -> None:
        CutSet.from_cuts(cuts).to_file(args.output / f"{name}.jsonl.gz")
        print(f"{name}: {len(cuts)} utterances, {sum(cut.duration for cut in cuts) / 3600:.3f} h")

    for split in ("train", "dev", "test"):
        cuts = [cut for cut in CutSet.from_file(args.corpus / f"{split}.jsonl.gz") if language_of(cut) in known]
        taken = [cut for cut in cuts if cut.supervisions[0].text in known[language_of(cut)]]
        write("others" if split == "test" else split, [cut for cut in cuts if cut not in taken])
        if split == "train":
            order = np.random.default_rng(0).permutation(len(taken))
            for share in PER_CENT:
                write(f"target-{share}", [taken[place] for place in order[: round(share * len(taken) / 100)]])
    write("years", [cut for language in known for cut in spoken_years(language, args.test_years, args.output)])
    texts = [f"{language}\t{text}" for language in known for text in known[language] if split_of_text(text) == "train"]
    (args.output / "years.txt").write_text("\n".join(texts) + "\n")
    print(f"years.txt: {len(texts)} texts")


def language_of(cut: MonoCut) -> str:
    return cut.supervisions[0].language or ""


if __name__ == "__main__":
    main()
