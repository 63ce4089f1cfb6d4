"""Options, errors and exit statuses that all programs of data_prep have in common."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from speechllm_pl.core.errors import UserError, printable


class Refused(Exception):
    """The first rejection of a strict run. Programs print its message alone and exit with status 1."""


def program_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a program of data_prep, which keeps the line breaks of its description."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m data_prep.{name}", description=description, formatter_class=raw)


def add_jobs(parser: argparse.ArgumentParser) -> None:
    told = "Number of processes (default: all cores)."
    parser.add_argument("--jobs", type=at_least_one, default=os.cpu_count() or 1, help=told)


def add_standard_arguments(
    parser: argparse.ArgumentParser, max_seconds: str = "Seconds above which an utterance is rejected"
) -> None:
    """Add --output, --jobs, and --max-seconds with the help `max_seconds`."""
    output = "Folder for the manifests, for example data/mine."
    parser.add_argument("--output", type=_utf_8_path, required=True, help=output)
    add_jobs(parser)
    parser.add_argument("--max-seconds", type=float, default=30.0, help=f"{max_seconds} (default: %(default)s).")


def _utf_8_path(text: str) -> Path:
    if not is_utf_8(text):
        raise argparse.ArgumentTypeError("its name is not UTF-8, which is all that manifests and libsndfile can hold")
    return Path(text)


def is_utf_8(path: Path | str) -> bool:
    """Whether a path is UTF-8. Python keeps other bytes as halves of surrogate pairs."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def run(main: Callable[[], None]) -> None:
    """Run a program: bad input ends it with one line and status 2, what --strict refuses with 1, Ctrl-C with 130."""
    try:
        main()
    except (Refused, UserError, OSError) as error:  # OSError: full disk, no permission
        print(f"error: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, Refused) else 2) from error
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
