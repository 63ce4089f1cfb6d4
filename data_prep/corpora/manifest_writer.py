"""Utterances → Lhotse manifests, with checks, quarantine and a summary: the way of every corpus.

A corpus is a sequence of `Utterance`s. `prepare` opens each recording in parallel, keeps those that a model can
be trained on and writes one manifest per split; every other one becomes a line of `quarantine.tsv` with the
reason. Manifests appear only when complete and depend on the input alone (not on the number of processes or
the clock), so that a run can be interrupted and repeated at will. The sequence is read once and never held: twelve
million utterances take as much memory as some ten thousand, and 8-byte digests of their ids.
"""

import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import MonoCut
from tqdm import tqdm

from data_prep.audio.checks import Rejected
from data_prep.corpora.entries import SPLITS, Rejection, Utterance, rejection
from data_prep.corpora.summary import Summary
from data_prep.machinery.command_line import Refused
from data_prep.machinery.pieces import compressed, join_files, write_piece
from data_prep.machinery.processes import parallel_map
from speechllm_pl.core.errors import UserError, printable
from speechllm_pl.storage.progress import progress_bar
from speechllm_pl.storage.whole_file import replace_atomically

PIECE = 20_000
"""Utterances that are checked again at most when an interrupted run is repeated."""


class Kept(NamedTuple):
    """A line of one or more manifests."""

    manifests: tuple[str, ...]
    key: tuple[str, str]  # (split or subset, language)
    seconds: float
    line: bytes


def prepare(
    utterances: Iterable[Utterance | Rejection],
    output: Path,
    *,
    jobs: int,
    make_cut: Callable[[Utterance], MonoCut],
    total: int | None = None,
    manifests: Collection[str] = SPLITS,
    strict: bool = False,
    to_get_dev: str = "prepare the split dev as well",
) -> Summary:
    """Check all utterances, write `output`/{split}.jsonl.gz and quarantine.tsv, print the summary.

    What has been checked is kept in `output`/.pieces until the manifests are there, for a run that goes on.

    Args:
        utterances: in the order that the manifests shall have; read once. `Rejection`s found while listing the
            corpus go to the quarantine file unchanged.
        jobs: processes. With more than one, `make_cut` must be picklable: a module's function or a partial of one.
        make_cut: utterance → cut; raises `Rejected`.
        total: how many utterances there are about, for the progress bar; not needed for a list.
        manifests: names of all that this corpus may have: of the splits, and of subsets that shall have their own.
            Those for which nothing is found are removed.
        strict: stop at the first rejection.
        to_get_dev: what to do where there are utterances to train on and none to validate on.

    Raises:
        UserError: nothing was usable (the quarantine file is written, manifests are left alone).
        Refused: the first rejection of a strict run.
    """
    if total is None and isinstance(utterances, Sized):
        total = len(utterances)
    summary, pieces = Summary(), []
    settings = f"{_identity(make_cut)} {sorted(manifests)} {strict}"
    check = functools.partial(_check, make_cut=make_cut)
    bar = progress_bar("checking", total, unit=" utterances")
    with parallel_map(jobs, preload=[__name__], chunksize=16) as run, bar:
        for number, items in enumerate(_batches(_reject_duplicates(utterances))):
            piece = output / ".pieces" / f"{number:06d}-{_digest(settings, items)}"
            if piece.is_dir():
                bar.update(len(items))
            else:
                write_piece(piece, _files(run(check, items), bar, manifests, strict))
            summary.add_json((piece / "summary.json").read_bytes())
            pieces.append(piece)
        bar.total = bar.n  # what it was given is about right
    _publish(pieces, summary, output, manifests)
    if any(split == "train" for split, _ in summary.utterances) and not (output / "dev.jsonl.gz").is_file():
        print(f"{output} has no dev split, and training needs one to validate on: {to_get_dev}")
    return summary


def _publish(pieces: Sequence[Path], summary: Summary, output: Path, manifests: Collection[str]) -> None:
    with replace_atomically(output / "quarantine.tsv") as file:
        file.write(b"split\tid\tpath\treason\tsource\n")
        join_files([piece / "quarantine.tsv" for piece in pieces], file)
    print(summary.table())
    if strangers := summary.strangers():
        print(f"no training utterance, though dev or test has some: {', '.join(strangers)}")
    rejected = summary.rejected.total()
    if rejected:
        print(f"rejected recordings: {output / 'quarantine.tsv'}")
    if summary.utterances:
        # Train last: whoever looks for it (make does) finds the others there too, also after an interruption.
        for name in sorted(manifests, key=lambda name: name == "train"):
            _publish_manifest(pieces, output / f"{name}.jsonl.gz")
    shutil.rmtree(output / ".pieces", ignore_errors=True)
    if not summary.utterances:
        raise UserError(
            f"no usable recording for {output}: all {rejected} were rejected, see {output / 'quarantine.tsv'}"
        )


def _publish_manifest(pieces: Sequence[Path], path: Path) -> None:
    parts = [piece / path.name for piece in pieces if (piece / path.name).is_file()]
    if not parts:
        path.unlink(missing_ok=True)
        return
    with replace_atomically(path) as file:
        join_files(parts, file)


def _reject_duplicates(utterances: Iterable[Utterance | Rejection]) -> Iterator[Utterance | Rejection]:
    """Make rejections of utterances whose id came before, and of those of an unknown split."""
    seen: set[int] = set()  # of digests: a twentieth of the memory that the ids would take with long names
    for item in utterances:
        if isinstance(item, Rejection):
            yield item
            continue
        digest = int.from_bytes(hashlib.blake2b(item.id.encode(), digest_size=8).digest(), "little")
        if item.split not in SPLITS:
            yield rejection(item, f"unknown split: {item.split!r} is none of {', '.join(SPLITS)}")
        elif digest in seen:
            yield rejection(item, "duplicate id")
        else:
            seen.add(digest)
            yield item


def _batches(items: Iterable[Utterance | Rejection]) -> Iterator[list[Utterance | Rejection]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, PIECE)):
        yield batch


def _digest(settings: str, items: Sequence[Utterance | Rejection]) -> str:
    """Sixteen hexadecimal digits that change with any item or setting."""
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    for item in items:
        digest.update(repr(item).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _identity(function: Callable[..., Any]) -> str:
    """A function's name, and the values of a partial's arguments: the same in every run."""
    if isinstance(function, functools.partial):
        return f"{_identity(function.func)} {function.args} {sorted(function.keywords.items())}"
    return f"{function.__module__}.{function.__qualname__}"


def _check(item: Utterance | Rejection, make_cut: Callable[[Utterance], MonoCut]) -> Kept | Rejection:
    if isinstance(item, Rejection):
        return item
    try:
        cut = make_cut(item)
    except Rejected as error:
        return rejection(item, str(error))
    line = (json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode()
    names = (item.split, item.subset) if item.subset else (item.split,)
    return Kept(names, (item.subset or item.split, item.language), cut.duration, line)


def _files(
    results: Iterable[Kept | Rejection], bar: tqdm, manifests: Collection[str], strict: bool
) -> dict[str, bytes]:
    """Names and contents of a piece's files.

    Raises:
        Refused: the first rejection, when `strict`.
    """
    lines: dict[str, list[bytes]] = {}
    quarantine: list[bytes] = []
    summary = Summary()
    for result in results:
        bar.update()
        if isinstance(result, Rejection):
            if strict:
                raise Refused(_sentence(result))
            quarantine.append(_quarantine_line(result))
            summary.rejected[result.reason.split(":")[0]] += 1
            continue
        summary.utterances[result.key] += 1
        summary.seconds[result.key] += result.seconds
        for name in result.manifests:
            if name in manifests:
                lines.setdefault(f"{name}.jsonl.gz", []).append(result.line)
    files = {name: compressed(of) for name, of in lines.items()}
    return files | {"quarantine.tsv": b"".join(quarantine), "summary.json": summary.to_json()}


def _quarantine_line(rejection: Rejection) -> bytes:
    fields = (rejection.split, rejection.id, rejection.path, rejection.reason, rejection.source)
    return ("\t".join(map(printable, fields)) + "\n").encode()


def _sentence(rejection: Rejection) -> str:
    where = " ".join(filter(None, (rejection.source, rejection.id)))
    return f"--strict: {where}: {rejection.reason} ({rejection.path})"
