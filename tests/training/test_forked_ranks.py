"""Ranks that are forked from the first work together, end together, and begin anew where a fork is not safe."""

import os
import signal
import subprocess
import threading
import uuid
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from command import SERVER
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from speechllm_pl.training.forked_ranks import ForkedDDPStrategy, ForkingLauncher

STEP = 0.25


class OneWeight(L.LightningModule):
    """Model whose gradient is 1 on the first rank and 2 on the second."""

    def __init__(self, made: str, folder: Path, killed: bool):
        super().__init__()
        self.made, self.folder, self.killed = made, folder, killed
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        if self.killed and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.weight * (self.global_rank + 1)

    def on_train_end(self) -> None:
        text = f"{self.made} {os.getpid()} {float(self.weight)}"
        (self.folder / f"{self.global_rank}").write_text(text)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), STEP)


def _fit(folder: Path, killed: bool) -> None:
    torch.set_num_threads(1)
    module = OneWeight(uuid.uuid4().hex, folder, killed)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ForkedDDPStrategy(),
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.zeros(2, 1))))


def fit(folder: Path, killed: bool) -> int | None:
    """Run a fit and return the exit status of the first rank."""
    process = SERVER.Process(target=_fit, args=(folder, killed))
    process.start()
    process.join(60)
    process.kill()
    process.join()
    return process.exitcode


def test_a_copy_of_the_first_rank_takes_its_share_of_the_gradient(tmp_path: Path) -> None:
    assert fit(tmp_path, killed=False) == 0
    (made, first, weight), (copied, second, same) = ((tmp_path / rank).read_text().split() for rank in "01")
    assert first != second
    assert made == copied  # what was drawn before the fork is known to both
    assert float(weight) == float(same) == -STEP * 1.5


def test_a_killed_copy_ends_the_first_rank_too(tmp_path: Path) -> None:
    assert fit(tmp_path, killed=True) in (1, -signal.SIGKILL)  # by a lost connection, or by its observer
    assert not list(tmp_path.iterdir())


def test_ranks_of_a_process_with_threads_begin_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: started.append(env["LOCAL_RANK"]))
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    done = threading.Event()
    threading.Thread(target=done.wait, daemon=True).start()
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked beside a thread"))
    ForkingLauncher(LightningEnvironment(), 3, 1)._call_children_scripts()
    done.set()
    assert started == ["1", "2"]
