"""Checkpoints that were damaged or edited, or are none: through `transcribe`."""

import io
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench import Bench
from jail import Ended
from torch import Tensor
from trials import CANARY, Trial

from speechllm_pl.storage.consolidated import RECORD, save_consolidated
from speechllm_pl.storage.digests import DIGESTS


class Bad(NamedTuple):
    kind: str
    content: bytes | None  # of the file; None for a folder, which is there
    edited: bool = False  # without digests: what cannot be told from another checkpoint may be used


def trial(bench: Bench, seed: int, folder: Path) -> Trial:
    """The hostile checkpoint of a seed, of either stage."""
    draw = random.Random(seed)
    stage = draw.choice(["ctc", "ctc", "llm"])
    whole = bench.ctc if stage == "ctc" else bench.llm
    (make,) = draw.choices([*KINDS], [*KINDS.values()])
    path = folder / "bad.ckpt"
    bad = make(draw, whole, path)
    if bad.content is not None:
        path.write_bytes(bad.content)
    arguments = ["transcribe", str(bench.good), "--checkpoint", str(path)]

    def judge(ended: Ended) -> tuple[str, str]:
        if not ended.out.startswith(f"{bench.good}: "):
            return "lost", "it printed no text"
        if bad.edited or _holds_the_same(path, whole):
            return "text", ""
        return "silent damage", "it is not what was saved, and was used"

    return Trial(f"{bad.kind}: {stage}", "speechllm", arguments, (str(path), str(bench.good), "the checkpoint"), judge)


def _holds_the_same(path: Path, whole: Path) -> bool:
    if path.is_dir():
        return False
    ours, theirs = (torch.load(each, map_location="cpu", weights_only=True) for each in (path, whole))
    return _same(ours["state_dict"], theirs["state_dict"]) and ours[RECORD] == theirs[RECORD]


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _bytes_damaged(draw: random.Random, content: bytes) -> tuple[str, bytes]:
    """Kind, and what is left."""
    changed, kind = bytearray(content), draw.choice(["flipped", "flipped", "cut", "overwritten", "gap", "longer"])
    at = draw.choice([draw.randrange(len(content)), draw.randrange(min(4096, len(content)))])
    at = draw.choice([at, max(0, len(content) - 1 - draw.randrange(min(4096, len(content))))])
    if kind == "flipped":
        changed[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "overwritten":
        length = min(draw.choice([1, 16, 512]), len(content) - at)
        changed[at : at + length] = draw.choice([bytes(length), draw.randbytes(length)])
    elif kind == "gap":
        del changed[at : at + draw.choice([1, 64, 4096])]
    else:
        changed += draw.choice([draw.randbytes(100), bytes(100), content])
    return kind, bytes(changed)


def _damaged(draw: random.Random, whole: Path, path: Path) -> Bad:
    return Bad(*_bytes_damaged(draw, whole.read_bytes()))


def _damaged_folder(draw: random.Random, whole: Path, path: Path) -> Bad:
    """A consolidated folder of which one file is damaged or missing."""
    found = torch.load(whole, weights_only=True)
    save_consolidated(path, found[RECORD], found["state_dict"])
    victim = draw.choice(sorted(path.iterdir()))
    if draw.random() < 0.1:
        victim.unlink()
        return Bad("folder without a file", None)
    before = victim.read_bytes()
    kind, content = _bytes_damaged(draw, before)
    victim.write_bytes(content)
    return Bad(f"folder {kind}", None, edited=content == before or victim.suffix == ".json")


VALUES: tuple[Callable[[], Any], ...] = (
    *[(lambda value=value: value) for value in (None, True, -1, 0, 7, 10**9, 2**63, 10**400, 0.5, 1e300, float("nan"))],
    *[
        (lambda value=value: value)
        for value in ("", "x", "\ud800", "x" * 100_000, b"", b"junk", [], {}, [1], {"a": 1}, {1: 2})
    ],
    lambda: torch.zeros(3),
    lambda: torch.full((3,), float("nan")),
    lambda: torch.ones(1).expand(10**12),
    lambda: torch.ones(2, device="meta"),
    lambda: torch.ones(2, 2).to_sparse(),
    lambda: torch.ones(2, dtype=torch.complex64),
    lambda: torch.zeros(0),
    lambda: torch.zeros((), dtype=torch.int64),
)


def _edited(draw: random.Random, whole: Path, path: Path) -> Bad:
    """One or two entries, settings or tensors are others, or gone; digests mostly too, which would tell."""
    found = torch.load(whole, weights_only=True)
    kept = draw.random() < 0.1
    if not kept:
        del found[DIGESTS]
    for _ in range(draw.choice([1, 1, 2])):
        record = found.get(RECORD)
        settings = record.get("settings") if isinstance(record, dict) else None
        encoder = settings.get("encoder") if isinstance(settings, dict) else None
        size = encoder.get("init_args") if isinstance(encoder, dict) else None
        parts = (found, found.get("state_dict"), record, settings, encoder, size)
        places = [each for each in parts if isinstance(each, dict)]
        place = draw.choice([place for place in places if place] or [{"": 0}])
        name = draw.choice([*place, *place, "unknown"])
        if draw.random() < 0.2:
            place.pop(name, None)
        else:
            place[name] = _near(draw, place.get(name)) if draw.random() < 0.2 else draw.choice(VALUES)()
    file = io.BytesIO()
    torch.save(found, file)
    return Bad("edited", file.getvalue(), edited=not kept)


def _near(draw: random.Random, value: Any) -> Any:
    """A value of the same type that could be there."""
    if isinstance(value, bytes):
        return _bytes_damaged(draw, value)[1] if value else b"x"
    if isinstance(value, Tensor):
        return draw.choice(
            [value.double(), value[..., :1].clone() if value.dim() else value, value.flatten(), value * 1e30]
        )
    if isinstance(value, int | float):
        return draw.choice([value + 1, value * 2, -value, value / 2])
    return value


class _Runs:
    def __init__(self, call: tuple[Callable, tuple]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


CALLS: tuple[tuple[Callable, tuple], ...] = (
    (os.system, (f"touch {CANARY}",)),
    (exec, (f"open({CANARY!r}, 'w')",)),
    (eval, (f"open({CANARY!r}, 'w')",)),
    (io.open, (CANARY, "w")),
)


def _executes(draw: random.Random, whole: Path, path: Path) -> Bad:
    """A pickle that runs something when it is read, plain or in a checkpoint."""
    runs = _Runs(draw.choice(CALLS))
    if draw.random() < 0.3:
        return Bad("executes", pickle.dumps(runs, protocol=draw.choice([0, 2, 4])))
    found = torch.load(whole, weights_only=True)
    place = draw.choice([found, found[RECORD], found["state_dict"], found[RECORD]["settings"]])
    place[draw.choice([*place, "unknown"])] = runs
    file = io.BytesIO()
    torch.save(found, file, _use_new_zipfile_serialization=draw.random() < 0.7)
    return Bad("executes", file.getvalue())


def _other_zip(draw: random.Random, whole: Path, path: Path) -> Bad:
    """Zip with its parts in another order, under other names, packed, repeated, or lied about; or none of them."""
    file, how = io.BytesIO(), draw.choice(["packed", "renamed", "repeated", "missing", "long", "empty", "other"])
    with zipfile.ZipFile(whole) as parts, zipfile.ZipFile(file, "w") as written:
        names = parts.namelist()
        victim = draw.choice(names)
        for name in names if how not in ("empty", "other") else ["readme.txt"] if how == "other" else []:
            content = parts.read(name) if name in names else b"words"
            if name == victim and how == "missing":
                continue
            as_name = f"{name}x" if name == victim and how == "renamed" else name
            packed = zipfile.ZIP_DEFLATED if how == "packed" else zipfile.ZIP_STORED
            if name == victim and how == "long":
                content, packed = bytes(64 * 2**20), zipfile.ZIP_DEFLATED
            written.writestr(as_name, content, packed)
            if name == victim and how == "repeated":
                written.writestr(f"{name}-2", content)
    return Bad("wrong zip", file.getvalue())


def _no_checkpoint(draw: random.Random, whole: Path, path: Path) -> Bad:
    made = draw.choice(["FIFO", "zeros", "itself", "hole", "folder", "nothing", "text"])
    if made == "FIFO":
        os.mkfifo(path)
    elif made in ("zeros", "itself"):
        path.symlink_to("/dev/zero" if made == "zeros" else path.name)
    elif made == "hole":
        path.touch()
        os.truncate(path, 2**40)
    elif made == "folder":
        path.mkdir()
        shutil.copy(whole, path)
    elif made == "text":
        path.write_bytes(draw.randbytes(draw.choice([0, 1, 4, 5000])))
    return Bad("no checkpoint", None)


KINDS: dict[Callable[[random.Random, Path, Path], Bad], int] = {
    _damaged: 6,
    _damaged_folder: 3,
    _edited: 6,
    _executes: 2,
    _other_zip: 2,
    _no_checkpoint: 1,
}
"""How often each occurs, beside the others."""
