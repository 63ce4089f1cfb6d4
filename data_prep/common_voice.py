"""Mozilla Common Voice, scripted speech → Lhotse manifests: sentences read by volunteers, en de nl fr es it pt pl.

    python -m data_prep.common_voice --corpus /corpora/cv-corpus-23.0-2025-09-05 --languages pl --output data/cv

CORPUS is the folder of a release (cv-corpus-…), with pl/train.tsv and pl/clips in it, or the folder around one.
Columns are found by name, so any release since the first will do.

Where    https://commonvoice.mozilla.org/datasets; newer releases https://mozilladatacollective.com
Licence  CC0 1.0; you promise not to find out who the speakers are
Size     of release 23.0, archive in GB, hours of all clips and of validated ones, clips of train:
         en 93.2 GB, 3,733 h (2,735 h), 1,143,276      de 36.9 GB, 1,477 h (1,370 h), 609,238
         nl 3.3 GB, 138 h (125 h), 45,756              fr 29.9 GB, 1,189 h (1,074 h), 598,539
         es 51.4 GB, 2,267 h (590 h), 355,918          it 10.3 GB, 420 h (362 h), 172,989
         pt 5.1 GB, 228 h (186 h), 22,991              pl 4.8 GB, 187 h (175 h), 24,735
Time     an hour of audio takes one core 3.1 s: train, dev and test of all eight languages (4,570 h) 4 hours
         (docs/data.md has the command that measured this)

train.tsv has each sentence once. --train validated takes every validated clip whose speaker and whose sentence
are in neither dev nor test: for Portuguese and Polish that is many times more.

Sentences were typed by many hands: accents that stand as apostrophes (e', perche') are written as what they are.

Why not lhotse.recipes: prepare_commonvoice ends at the first clip that is damaged and at releases that lack a
column, and holds the corpus.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from data_prep.corpora.entries import SPLITS, Rejection, Utterance
from data_prep.corpora.lines import BrokenLine, count_lines, tsv_rows
from data_prep.corpora.published import LANGUAGES, gender, languages_to_prepare, not_there, parser_of, prepare_published
from data_prep.machinery.command_line import run
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.text import normalize

COLUMNS = ("client_id", "path", "sentence")
"""Every release has these; gender is there but for the first clips, and the others vary."""

RATES = (16_000, 48_000)
"""Hz: clips are 32 or 48 kHz, of early releases also less."""


def find_languages(corpus: Path) -> dict[str, Path]:
    """Find the folder of each language.

    Raises:
        UserError: there is none, and the message says where to get them; or there are several releases.
    """
    if corpus.resolve().name in LANGUAGES and (corpus / "train.tsv").is_file():
        return {corpus.resolve().name: corpus}
    releases = sorted(corpus.glob("cv-corpus-*/*/train.tsv"))
    folders = sorted({path.parents[1] for path in releases}) or [corpus]
    if len(folders) > 1:
        raise UserError(f"{corpus} holds several releases ({', '.join(path.name for path in folders)}): name one")
    found = {code: folders[0] / code for code in LANGUAGES if (folders[0] / code / "train.tsv").is_file()}
    if not found:
        how = "from https://commonvoice.mozilla.org/datasets, unpack it, and give the folder"
        raise not_there("Common Voice", corpus, "pl/train.tsv, cv-corpus-*/pl/train.tsv", how)
    return found


class HeldOut:
    """Speakers and normalised sentences of dev and test, and the number of validated clips that they keep out."""

    def __init__(self, folder: Path, language: str):
        self._language = language
        rows = [row for split in ("dev", "test") for _, row in tsv_rows(folder / f"{split}.tsv", COLUMNS)]
        good = [row for row in rows if not isinstance(row, BrokenLine)]
        self._speakers = {row["client_id"] for row in good}
        self._sentences = {normalize(row["sentence"], language, respell=True) for row in good}
        self.left_out = 0

    def has(self, row: Mapping[str, str]) -> bool:
        sentence = normalize(row["sentence"], self._language, respell=True)
        found = row["client_id"] in self._speakers or sentence in self._sentences
        self.left_out += found
        return found


def utterances(
    folder: Path, language: str, split: str, table: str | None = None, held_out: HeldOut | None = None
) -> Iterator[Utterance | Rejection]:
    """Utterances of a split, in the order of the TSV `table` (default: the split's), without those of `held_out`."""
    clips = folder / "clips"
    for place, row in tsv_rows(folder / f"{table or split}.tsv", COLUMNS):
        if isinstance(row, BrokenLine):
            yield Rejection(split, "", str(clips), f"broken line: {row}", place)
            continue
        if held_out is not None and held_out.has(row):
            continue
        # Early releases leave the suffix out.
        clip = row["path"] if row["path"].endswith(".mp3") else f"{row['path']}.mp3"
        yield Utterance(
            id=clip.removesuffix(".mp3"),
            path=f"{clips}/{clip}",
            text=normalize(row["sentence"], language, respell=True),
            language=language,
            speaker=row["client_id"] or "unknown",
            split=split,
            gender=gender(row.get("gender", "")),
            source=place,
        )


def main(argv: list[str] | None = None) -> None:
    parser = parser_of("common_voice", __doc__, LANGUAGES)
    told = "Table of the training set (default: %(default)s)."
    parser.add_argument("--train", choices=("train", "validated"), default="train", help=told)
    args = parser.parse_args(argv)
    folders = languages_to_prepare(args.languages, find_languages(args.corpus), "Common Voice")
    tables = {split: args.train if split == "train" else split for split in SPLITS}
    total = sum(count_lines(folder / f"{table}.tsv") - 1 for folder in folders.values() for table in tables.values())
    prepare_published(args, _all_utterances(folders, tables), total=total, rates=RATES)


def _all_utterances(folders: Mapping[str, Path], tables: Mapping[str, str]) -> Iterator[Utterance | Rejection]:
    for language, folder in folders.items():
        held_out = HeldOut(folder, language) if tables["train"] == "validated" else None
        for split, table in tables.items():
            yield from utterances(folder, language, split, table, held_out if split == "train" else None)
        if held_out is not None:
            why = "as dev or test have their speaker or sentence"
            tqdm.write(f"{language}: {held_out.left_out} clips of validated.tsv left out, {why}")


if __name__ == "__main__":
    run(main)
