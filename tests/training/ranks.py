"""A function run by several processes that belong to one gloo group."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_ranks(function: Callable[..., None], ranks: int, folder: Path, *arguments: object) -> None:
    """`function(rank, ranks, *arguments)` in each; `folder` is for their rendezvous."""
    mp.spawn(_rank, (ranks, folder, function, *arguments), nprocs=ranks)  # type: ignore[attr-defined]


def _rank(rank: int, ranks: int, folder: Path, function: Callable[..., None], *arguments: object) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    function(rank, ranks, *arguments)
    dist.destroy_process_group()
