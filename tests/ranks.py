"""A function run by several processes that belong to one gloo group."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from command import SERVER


def in_ranks(function: Callable[..., None], ranks: int, folder: Path, *arguments: object) -> None:
    """`function(rank, ranks, *arguments)` in each; `folder` is for their rendezvous."""
    given = (ranks, folder, function, *arguments)
    mp.start_processes(_rank, given, nprocs=ranks, start_method=SERVER.get_start_method())


def _rank(rank: int, ranks: int, folder: Path, function: Callable[..., None], *arguments: object) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    waiting = timedelta(minutes=3)  # for a rank that does not take part
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", waiting, world_size=ranks, rank=rank)
    function(rank, ranks, *arguments)
    dist.destroy_process_group()
