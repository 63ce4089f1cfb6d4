"""Checkpoints written by many ranks: folders of safetensors shards, with a record of everything else.

Any number of ranks can read them, as can a run that does not shard. Only the record is pickled, and it is read with
`weights_only`.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.tensor import DTensor

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.checkpoint_files import named_errors, partial_name, remove, rename, write
from speechllm_pl.storage.digests import (
    DIGESTS,
    FILE,
    broken,
    damaged,
    difference,
    digests_of,
    file_digests,
    not_finite,
)

RECORD_FILE = "record.pt"
"""File of everything but the tensors of model and optimiser."""

MODEL, OPTIMIZER = "model/", "optimizer/"
"""Prefixes of the tensors' names."""


def save_shards(
    target: Path, record: dict[str, Any], tensors: dict[str, Tensor], group: dist.ProcessGroup | None = None
) -> None:
    """Write a checkpoint folder from all ranks: safetensors shards, and the record.

    Args:
        group: used by nothing else at the same time, if this runs in a thread; default is all ranks.

    Raises:
        UserError: it could not be written; a former one of this name is untouched.
    """
    temporary = partial_name(target)
    first = not dist.is_initialized() or dist.get_rank() == 0
    with named_errors(target):
        if first:
            remove(temporary)
            temporary.mkdir(parents=True)
        _wait(group)
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        save_distributed(tensors, storage_writer=writer, process_group=group)
        digests = _digests_of_files(temporary, group)
        if first:
            write({**record, DIGESTS: digests_of(record) | digests}, temporary / RECORD_FILE)
            rename(temporary, target)
    _wait(group)


def _digests_of_files(folder: Path, group: dist.ProcessGroup | None) -> dict[str, str]:
    """Digests of all files of tensors; each rank reads what it wrote, which is still in its page cache."""
    if not dist.is_initialized():
        return file_digests(folder.glob("*.safetensors"))
    own = file_digests(folder.glob(f"shard-{dist.get_rank() + 1:05d}-*.safetensors"))
    found = _of_ranks(own, group)
    return {name: digest for digests in found for name, digest in digests.items()}


def load_shards(path: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill `tensors` in place from a checkpoint folder, however many ranks wrote it.

    The optimiser's state is skipped if it is not requested, or if the run had not taken a step.

    Args:
        group: the ranks that must agree; default is all.

    Raises:
        UserError: it lacks one of them, has others, is damaged, or has weights that are not finite. On all ranks.
    """
    place = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ()
    _refuse_together(_damage(path, _saved_digests(path), *place), group)
    reader = HuggingFaceStorageReader(str(path))
    found = set(reader.read_metadata().state_dict_metadata)
    if not all(any(name.startswith(OPTIMIZER) for name in names) for names in (tensors, found)):
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
        found = {name for name in found if name.startswith(MODEL)}
    refuse_other_keys(set(tensors), found)
    load_distributed(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    own = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in weights.items()}
    _refuse_together(broken(path, name) if (name := not_finite(own)) else "", group)


def _damage(path: Path, digests: dict[str, str] | None, rank: int = 0, ranks: int = 1) -> str:
    """Describe damage to the files of a folder, of which this rank reads its share; empty if there is none.

    Args:
        digests: of all that was saved; None for a checkpoint of an earlier version.
    """
    names = sorted(name for name in digests or () if name.startswith(FILE))[rank::ranks]
    files = (path / name.removeprefix(FILE) for name in names)
    found = file_digests(file for file in files if file.exists())
    problem = difference({name: (digests or {})[name] for name in names}, found)
    return damaged(path, problem) if problem else ""


def _saved_digests(path: Path) -> dict[str, str] | None:
    return torch.load(path / RECORD_FILE, map_location="cpu", weights_only=True).get(DIGESTS)


def _refuse_together(problem: str, group: dist.ProcessGroup | None) -> None:
    """Raise on all ranks the problem that any of them has, so that none waits for it.

    Raises:
        UserError: there is one.
    """
    problems = list(filter(None, _of_ranks(problem, group)))
    if problems:
        raise UserError(problems[0])


def _of_ranks(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Gather the value of every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


def join_shards(path: Path, checkpoint: dict[str, Any], *, optimizer: bool) -> None:
    """Add to the record of a folder what a single file would hold; the optimiser's state if requested.

    Raises:
        UserError: a file is not what was saved.
    """
    if problem := _damage(path, checkpoint.get(DIGESTS)):
        raise UserError(problem)
    found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(cast(Any, m).size, dtype=cast(Any, m).properties.dtype)
        for name, m in found.items()
        if optimizer or name.startswith(MODEL)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group is needed is what we want
        load_distributed(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    checkpoint["state_dict"] = {n.removeprefix(MODEL): t for n, t in tensors.items() if n.startswith(MODEL)}
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            parameter, _, key = name.removeprefix(OPTIMIZER).rpartition("/")
            by_parameter.setdefault(parameter, {})[key] = tensor
    for saved in checkpoint.get("optimizer_states", []):
        names = [name for group in saved["param_groups"] for name in group["params"]]
        saved["state"] = {place: by_parameter[name] for place, name in enumerate(names) if name in by_parameter}
        places = iter(range(len(names)))
        for group in saved["param_groups"]:
            group["params"] = [next(places) for _ in group["params"]]


def optimizer_tensors(
    names: dict[nn.Parameter, str], optimizer: torch.optim.Optimizer, saved: dict[str, Any] | None = None
) -> dict[str, Tensor]:
    """Tensors of the optimiser's state, not copied, under their names in a sharded checkpoint.

    Args:
        saved: state of a single file, if not the optimiser's own.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = optimizer.state if saved is None else {parameters[place]: state for place, state in saved["state"].items()}
    return {
        f"{OPTIMIZER}{names[cast(nn.Parameter, parameter)]}/{key}": value
        for parameter, state in states.items()
        for key, value in state.items()
    }


def optimizer_groups(names: dict[nn.Parameter, str], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Parameter groups that list their parameters by name."""
    return [{**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]


def refuse_other_keys(expected: set[str], found: Iterable[str]) -> None:
    """Refuse a checkpoint with missing or unexpected tensors.

    Raises:
        UserError: names the first of them.
    """
    found = set(found)
    for keys, what in ((expected - found, "lacks"), (found - expected, "has unexpected")):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise UserError(
                f"the checkpoint {what} {some} ({len(keys)} in all): it was made with other model settings;"
                " use those of its run (config.yaml beside it)"
            )


def refuse_other_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint whose tensors have other shapes.

    Raises:
        UserError: names the first tensor of both with another shape in the checkpoint.
    """
    for name in expected.keys() & found.keys():
        ours, theirs = tuple(expected[name].shape), tuple(found[name].shape)
        if ours != theirs:
            raise UserError(
                f"the checkpoint's {name} has the shape {theirs}, but its settings make it {ours}: it was edited;"
                " take another copy of it"
            )


def _wait(group: dist.ProcessGroup | None) -> None:
    if dist.is_initialized():
        dist.barrier(group)
