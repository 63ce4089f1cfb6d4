"""Options, and what else the preparation of all published corpora has in common."""

import argparse
import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from lhotse import MonoCut

from data_prep.corpora.checked_cuts import cut_from_header, cut_from_utterance
from data_prep.corpora.entries import SPLITS, Rejection, Utterance
from data_prep.corpora.lines import BrokenLine, text_lines
from data_prep.corpora.manifest_writer import prepare
from data_prep.machinery.command_line import add_standard_arguments, program_parser
from speechllm_pl.core.errors import UserError

LANGUAGES = ("en", "de", "nl", "fr", "es", "it", "pt", "pl")
"""The project's, from the largest of MLS to the smallest."""

MALE, FEMALE = ("m", "male", "male_masculine"), ("f", "female", "female_feminine")
GENDERS = dict.fromkeys(MALE, "male") | dict.fromkeys(FEMALE, "female")
"""How the corpora write the two that most of them know; what else a speaker said of themselves is left out."""


def gender(label: str) -> str:
    """A corpus's label as male, female or nothing."""
    return GENDERS.get(label.strip().lower(), "")


def read_genders(path: Path) -> dict[str, str]:
    """Gender of each speaker, from lines `speaker | gender | …`; none without the file.

    Lines that begin with a semicolon are comments. Later columns may hold anything, separators too.
    """
    genders = {}
    for _, line in text_lines(path) if path.is_file() else ():
        fields = [] if isinstance(line, BrokenLine) or line.startswith(";") else line.split("|")
        if len(fields) > 1:
            genders[fields[0].strip()] = gender(fields[1])
    return genders


def parser_of(module: str, description: str | None, languages: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Make a parser with the options of every corpus, and `--languages` if it has several."""
    parser = program_parser(module, description)
    parser.add_argument("--corpus", type=Path, required=True, help="Folder in which the corpus was unpacked.")
    add_standard_arguments(parser, "Seconds above which an utterance of train is rejected; dev and test stay whole")
    if languages:
        told = "Languages to prepare (default: all that are there)."
        parser.add_argument("--languages", nargs="+", choices=languages, metavar="CODE", help=told)
    parser.add_argument(
        "--check",
        choices=("decode", "header"),
        default="decode",
        help="How recordings are checked: decode all of each, or believe its header and decode its ends only, which is "
        "faster and finds no silence and no damage within; MP3 is decoded in either case (default: %(default)s).",
    )
    strict = "Stop at the first recording or line that cannot be used, with status 1."
    parser.add_argument("--strict", action="store_true", help=strict)
    return parser


def not_there(corpus: str, folder: Path, looked_for: str, how: str) -> UserError:
    """The error of a folder without a corpus: what was looked for, and how to get it."""
    options = "CORPUS=<folder> to make or --corpus <folder> here"
    return UserError(f"no {corpus} in {folder} (looked for {looked_for} and so on): get it {how} as {options}")


def languages_to_prepare(asked: Sequence[str] | None, found: Mapping[str, Path], corpus: str) -> Mapping[str, Path]:
    """Choose the languages that are asked for, or all, of `found` (language → its folder), and print their folders.

    Raises:
        UserError: a language that is asked for is not there.
    """
    for language in asked or ():
        if language not in found:
            raise UserError(f"no {corpus} in the language {language}; there are: {', '.join(found)}")
    chosen = {language: folder for language, folder in found.items() if not asked or language in asked}
    for folder in chosen.values():
        print(f"reading {folder}")
    return chosen


def prepare_published(
    args: argparse.Namespace,
    utterances: Iterable[Utterance | Rejection],
    *,
    total: int,
    rates: tuple[int, int],
    manifests: Collection[str] = SPLITS,
) -> None:
    """Call `prepare` as the options say. Dev and test stay whole, whatever --max-seconds: others score them so.

    Args:
        rates: the lowest and the highest sampling rate in Hz that the corpus has.
    """
    prepare(
        utterances,
        args.output,
        jobs=args.jobs,
        make_cut=functools.partial(_cut, check=args.check, max_train_seconds=args.max_seconds, rates=rates),
        total=total,
        manifests=manifests,
        strict=args.strict,
    )


def _cut(utterance: Utterance, *, check: str, max_train_seconds: float, rates: tuple[int, int]) -> MonoCut:
    cut_of = cut_from_header if check == "header" else cut_from_utterance
    return cut_of(utterance, max_seconds=max_train_seconds if utterance.split == "train" else math.inf, rates=rates)
