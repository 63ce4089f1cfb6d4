"""VoxPopuli, transcribed speech → Lhotse manifests: the European Parliament, en de nl fr es it pl.

    python -m data_prep.voxpopuli --corpus /corpora/voxpopuli --languages pl --output data/voxpopuli

CORPUS is the root that the official scripts were given: recordings are in transcribed_data/pl/2019/….ogg, and
the rows in transcribed_data/pl/asr_train.tsv, asr_dev.tsv and asr_test.tsv.

Where    https://github.com/facebookresearch/voxpopuli; with its scripts
         python -m voxpopuli.download_audios --root ROOT --subset asr
         python -m voxpopuli.get_asr_data --root ROOT --lang pl
Licence  CC0 1.0 (audio: see the European Parliament's legal notice)
Size     transcribed hours: en 543, de 282, fr 211, es 166, pl 111, it 91, nl 53; no Portuguese.
         Cut, about 25 GB; the whole sessions, which the script fetches first, may go afterwards.
Time     an hour of audio takes one core 2.9 s: all languages 1.2 hours (docs/data.md has the command that
         measured this)

The corpus's own normalised text is taken, and the raw one where that is empty; digits in it are written out.

Why not lhotse.recipes: prepare_voxpopuli reads the uncut sessions, fetches its tables from the network, and takes
the pauses in that the official cutting leaves out.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from data_prep.corpora.entries import SPLITS, Rejection, Utterance
from data_prep.corpora.lines import BrokenLine, count_lines, tsv_rows
from data_prep.corpora.published import LANGUAGES, gender, languages_to_prepare, not_there, parser_of, prepare_published
from data_prep.machinery.command_line import run
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.text import normalize

TRANSCRIBED = tuple(language for language in LANGUAGES if language != "pt")
COLUMNS = ("id", "raw_text", "normalized_text", "speaker_id")


def find_languages(corpus: Path) -> dict[str, Path]:
    """Find the folder of each language.

    Raises:
        UserError: there is none; the message says where to get them.
    """
    for root in (corpus, corpus / "transcribed_data"):
        found = {code: root / code for code in TRANSCRIBED if (root / code / "asr_train.tsv").is_file()}
        if found:
            return found
    how = "with the scripts of https://github.com/facebookresearch/voxpopuli, and give their --root"
    raise not_there("VoxPopuli", corpus, "transcribed_data/pl/asr_train.tsv", how)


def utterances(folder: Path, language: str, split: str) -> Iterator[Utterance | Rejection]:
    """Utterances of a split in the order of its rows."""
    for place, row in tsv_rows(folder / f"asr_{split}.tsv", COLUMNS):
        if isinstance(row, BrokenLine):
            yield Rejection(split, "", str(folder), f"broken line: {row}", place)
            continue
        name = row["id"]
        yield Utterance(
            id=name,
            path=f"{folder}/{name[:4]}/{name}.ogg",  # an id begins with the date of the session
            text=normalize(row["normalized_text"].strip() or row["raw_text"], language),
            language=language,
            speaker="unknown" if row["speaker_id"] in ("", "None") else row["speaker_id"],
            split=split,
            gender=gender(row.get("gender", "")),
            source=place,
        )


def main(argv: list[str] | None = None) -> None:
    args = parser_of("voxpopuli", __doc__, LANGUAGES).parse_args(argv)
    if "pt" in (args.languages or ()):
        raise UserError("VoxPopuli has no transcribed Portuguese: leave pt out")
    folders = languages_to_prepare(args.languages, find_languages(args.corpus), "VoxPopuli")
    total = sum(count_lines(folder / f"asr_{split}.tsv") - 1 for folder in folders.values() for split in SPLITS)
    parts = (utterances(folder, language, split) for language, folder in folders.items() for split in SPLITS)
    prepare_published(args, chain.from_iterable(parts), total=total, rates=(16_000, 16_000))


if __name__ == "__main__":
    run(main)
