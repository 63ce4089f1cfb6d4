"""Digests of the content of a checkpoint: damage is reported when it is read.

They detect damage and edits, not attacks: whoever can write a file can write its digests too.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from speechllm_pl.core.errors import UserError

DIGESTS = "digests"
"""Entry of a checkpoint with the digests of all others; each tensor of the state has its own."""

STATE, FILE = "state_dict", "file "
"""Entry with the tensors; prefix in the digest's name of a file beside the record."""

SIZE = 8
"""Bytes of a digest, enough to detect accidental damage."""

THREADS = 4
"""Threads that hash: hashing releases the GIL, and one thread is slower than a disk."""

log = logging.getLogger(__name__)


def digests_of(contents: Mapping[str, Any]) -> dict[str, str]:
    """Digests of each entry of a checkpoint and of each tensor of its state, by name."""
    named = dict(_parts({key: value for key, value in contents.items() if key != DIGESTS}))
    with ThreadPoolExecutor(THREADS, "digests") as threads:
        return dict(zip(named, threads.map(_digest, named.values()), strict=True))


def file_digests(paths: Iterable[Path]) -> dict[str, str]:
    """Digests of whole files, by name."""
    paths = list(paths)
    with ThreadPoolExecutor(THREADS, "digests") as threads:
        return {FILE + path.name: found for path, found in zip(paths, threads.map(_file, paths), strict=True)}


def refuse_damage(what: Path, contents: Mapping[str, Any], digests: Mapping[str, str] | None) -> None:
    """Compare the content of a checkpoint with its digests.

    Args:
        what: path of the checkpoint, for errors.
        contents: all that it holds, except files beside its record.
        digests: saved with it; None for a checkpoint of an earlier version, about which a warning is logged.

    Raises:
        UserError: something is not what was saved.
    """
    if digests is None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            log.warning("%s is of an earlier version, without digests: whether it is what was saved is not known", what)
        return
    saved = {name: digest for name, digest in digests.items() if not name.startswith(FILE)}
    problem = difference(saved, digests_of(contents))
    if problem:
        raise UserError(damaged(what, problem))


def difference(saved: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Describe the first difference; empty if there is none. Tensors that were never saved are reported elsewhere."""
    for name, digest in saved.items():
        shown = name.removeprefix(f"{STATE}/").removeprefix(FILE)
        if name not in found:
            lost = sum(name not in found for name in saved)
            return f"it lacks {shown} ({lost} in all)"
        if found[name] != digest:
            return f"{shown} is not what was saved"
    return ""


def damaged(what: Path, problem: str) -> str:
    """Message about a checkpoint that is not as it was saved."""
    return (
        f"{what} is damaged or was edited: {problem}; take another copy of it, or delete it and take another one of its"
        " run, which goes on from the state before"
    )


def refuse_not_finite(what: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite.

    Raises:
        UserError: names the first tensor that holds NaN or infinity.
    """
    name = not_finite(state)
    if name:
        raise UserError(broken(what, name))


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Name of the first tensor that holds NaN or infinity; empty if none does."""
    for name, tensor in tensors.items():
        # A sum is quicker, and finite only if all is; it may overflow by itself.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not bool(tensor.isfinite().all()):
            return name
    return ""


def broken(what: Path, name: str) -> str:
    """Message about weights that are not finite."""
    return f"{what}: {name} has values that are not finite, so nothing is recognised: take another one of its run"


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor's values lie in memory, each by itself: else a small file may stand for a terabyte."""
    laid_out = not tensor.is_meta and tensor.layout == torch.strided
    return laid_out and tensor.nbytes <= tensor.untyped_storage().nbytes()


def _parts(contents: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in contents.items():
        if key == STATE and isinstance(value, Mapping):
            yield from ((f"{STATE}/{name}", tensor) for name, tensor in value.items())
        else:
            yield key, value


def _digest(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=SIZE)
    for piece in _pieces(value):
        digest.update(piece)
    return digest.hexdigest()


def _file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=SIZE)).hexdigest()


def _pieces(value: Any) -> Iterator[Any]:
    """Value as bytes, the same before saving in any form and after."""
    if isinstance(value, Tensor) and not is_there(value):
        yield f"no values {tuple(value.shape)} ".encode()
    elif isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        yield f"tensor {plain.dtype} {tuple(plain.shape)} ".encode()
        yield plain.reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)} ".encode()
        for key, inside in value.items():
            yield from _pieces(key)
            yield from _pieces(inside)
    elif isinstance(value, list | tuple):
        yield f"list {len(value)} ".encode()
        for inside in value:
            yield from _pieces(inside)
    elif isinstance(value, bytes):
        yield f"bytes {len(value)} ".encode()
        yield value
    else:
        yield f"{value!r} ".encode()
