"""LibriSpeech → Lhotse manifests: read audiobooks, English.

    python -m data_prep.librispeech --corpus /corpora/LibriSpeech --output data/librispeech

CORPUS is the folder LibriSpeech that the archives unpack to, or the folder around it. All subsets that are there
are taken: train-* are train, dev-* are dev, test-* are test. Those of dev and test also get manifests of their
own, dev-clean.jsonl.gz and so on, so that `make evaluate DATA=librispeech SPLIT=test-other` scores one of them.

Where    https://www.openslr.org/12 (train-clean-100.tar.gz, dev-clean.tar.gz and so on)
Licence  CC BY 4.0
Size     archive in GB, hours: train-clean-100 6.3, 100.6; train-clean-360 23, 363.6; train-other-500 30, 496.7;
         dev-clean 0.34, 5.4; dev-other 0.31, 5.3; test-clean 0.35, 5.4; test-other 0.33, 5.1
Time     an hour of audio takes one core 1.4 s: all 982 h 24 minutes (docs/data.md has the command that measured
         this)

Transcripts stay as published, but in lower case.

Why not lhotse.recipes: prepare_librispeech ends at the first damaged recording or empty transcript, and holds the
corpus.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.corpora.entries import SPLITS, Rejection, Utterance
from data_prep.corpora.lines import BrokenLine, count_lines, text_lines
from data_prep.corpora.published import not_there, parser_of, prepare_published, read_genders
from data_prep.machinery.command_line import run
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.text import as_published

SUBSETS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)
MANIFESTS = (*SPLITS, *(subset for subset in SUBSETS if not subset.startswith("train")))


def find_subsets(corpus: Path, asked: Sequence[str] | None) -> list[Path]:
    """Find the folders of the subsets `asked` for, or of all that are there.

    Raises:
        UserError: there is none, and the message says where to get them; or one that is asked for is missing.
    """
    inside = corpus / "LibriSpeech"
    root = inside if inside.is_dir() else corpus
    there = [root / subset for subset in SUBSETS if (root / subset).is_dir()]
    if not there:
        how = "from https://www.openslr.org/12, unpack it, and give the folder"
        raise not_there("LibriSpeech", corpus, "dev-clean, LibriSpeech/dev-clean", how)
    missing = [subset for subset in asked or () if root / subset not in there]
    if missing:
        raise UserError(f"{root} has no {missing[0]}; there are: {', '.join(path.name for path in there)}")
    return [path for path in there if not asked or path.name in asked]


def transcripts(subset: Path) -> list[Path]:
    """Transcript files of all chapters, in the order of their names."""
    return sorted(subset.glob("*/*/*.trans.txt"))


def utterances(subset: Path) -> Iterator[Utterance | Rejection]:
    """Utterances of a subset, in the order of its chapters' names and of their lines."""
    split = subset.name.split("-")[0]
    genders = read_genders(subset.parent / "SPEAKERS.TXT")
    for path in transcripts(subset):
        for place, line in text_lines(path):
            try:
                name, speaker, text = _parsed(line)
            except BrokenLine as error:
                yield Rejection(split, "", str(path.parent), f"broken line: {error}", place)
                continue
            yield Utterance(
                id=name,
                path=f"{path.parent}/{name}.flac",
                text=as_published(text).lower(),
                language="en",
                speaker=speaker,
                split=split,
                gender=genders.get(speaker, ""),
                subset=subset.name,
                source=place,
            )


def _parsed(line: str | BrokenLine) -> tuple[str, str, str]:
    """Take a line apart: the recording's name, its speaker, and the transcript."""
    if isinstance(line, BrokenLine):
        raise line
    name, _, text = line.partition(" ")
    parts = name.split("-")
    if len(parts) != 3:
        raise BrokenLine("expected speaker-chapter-number, a space and the transcript")
    return name, parts[0], text


def main(argv: list[str] | None = None) -> None:
    parser = parser_of("librispeech", __doc__)
    told = "Subsets to prepare (default: all that are there)."
    parser.add_argument("--subsets", nargs="+", choices=SUBSETS, metavar="NAME", help=told)
    args = parser.parse_args(argv)
    subsets = find_subsets(args.corpus, args.subsets)
    print(f"reading {', '.join(map(str, subsets))}")
    total = sum(count_lines(path) for subset in subsets for path in transcripts(subset))
    all_utterances = (utterance for subset in subsets for utterance in utterances(subset))
    prepare_published(args, all_utterances, total=total, rates=(16_000, 16_000), manifests=MANIFESTS)


if __name__ == "__main__":
    run(main)
