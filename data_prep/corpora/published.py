"""What the preparation of every published corpus has in common: its options, and how they reach `prepare`."""

import argparse
import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from lhotse import MonoCut

from data_prep.corpora.checked_cuts import cut_from_header, cut_from_utterance
from data_prep.corpora.entries import SPLITS, Rejection, Utterance
from data_prep.corpora.preparation import prepare
from data_prep.machinery.command_line import add_standard_arguments
from speechllm_pl.core.errors import UserError

LANGUAGES = ("en", "de", "nl", "fr", "es", "it", "pt", "pl")
"""The project's, from the largest of MLS to the smallest."""

GENDERS: Mapping[str, str] = {
    "m": "male",
    "male": "male",
    "male_masculine": "male",
    "f": "female",
    "female": "female",
    "female_feminine": "female",
}
"""How the corpora write the two that most of them know; what else a speaker said of themselves is left out."""


def gender(label: str) -> str:
    """male, female or nothing."""
    return GENDERS.get(label.strip().lower(), "")


def parser_of(module: str, description: str | None, languages: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A parser with the options of every corpus, and `--languages` if it has several."""
    assert description is not None
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder in which the corpus was unpacked")
    add_standard_arguments(parser, "reject longer utterances of train; dev and test stay whole (default: %(default)s)")
    if languages:
        parser.add_argument(
            "--languages", nargs="+", choices=languages, metavar="CODE", help="default: all that are there"
        )
    parser.add_argument(
        "--check",
        choices=("decode", "header"),
        default="decode",
        help="decode every recording, or believe the headers and decode ends only: faster, finds no silence "
        "and no damage within; MP3 is decoded in either case (default: decode)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first recording or line that cannot be used, with status 1"
    )
    return parser


def languages_to_prepare(asked: Sequence[str] | None, found: Mapping[str, Path], corpus: str) -> Mapping[str, Path]:
    """Those of `found` (language → its folder) that are asked for; all, unless some are. Says what is read.

    Raises:
        UserError: one that is asked for is not there.
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
    """`prepare` as the options say. No length is too long for the official dev and test, which others score whole.

    Args:
        rates: the lowest and the highest sampling rate in Hz that the corpus has.
    """
    prepare(
        utterances,
        args.output,
        jobs=args.jobs,
        max_seconds=args.max_seconds,
        make_cut=functools.partial(_cut, check=args.check, max_train_seconds=args.max_seconds, rates=rates),
        total=total,
        manifests=manifests,
        strict=args.strict,
    )


def _cut(utterance: Utterance, *, check: str, max_train_seconds: float, rates: tuple[int, int]) -> MonoCut:
    cut_of = cut_from_header if check == "header" else cut_from_utterance
    return cut_of(utterance, max_seconds=max_train_seconds if utterance.split == "train" else math.inf, rates=rates)
