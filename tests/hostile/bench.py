"""What hostile inputs are made from and read with: a good recording, and models of a few thousand weights."""

from pathlib import Path
from typing import NamedTuple

import torch

from speechllm_pl.storage.checkpoints import write_file
from speechllm_pl.training.stage import Stage


class Bench(NamedTuple):
    ctc: Path  # a checkpoint of stage 1
    llm: Path  # of stage 2
    good: Path  # a recording of 16 kHz
    tokenizer: Path


def saved(module: Stage, path: Path) -> Path:
    """A checkpoint of a module that has learned nothing, with its digests."""
    torch.manual_seed(0)
    module.configure_model()
    checkpoint = {"state_dict": module.state_dict(), "epoch": 0, "global_step": 0}
    module.on_save_checkpoint(checkpoint)
    write_file(checkpoint, path)
    return path
