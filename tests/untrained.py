"""Checkpoints of modules that have learned nothing: enough for whatever does not depend on what is recognised."""

from pathlib import Path

import lightning as L
import torch

from speechllm_pl.training.stage import Stage


def save(module: Stage, path: Path) -> Path:
    torch.manual_seed(0)
    module.configure_model()
    checkpoint = {
        "state_dict": module.state_dict(),
        "pytorch-lightning_version": L.__version__,
        "epoch": 0,
        "global_step": 0,
    }
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path
