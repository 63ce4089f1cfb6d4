"""A LightningDataModule built on Lhotse cuts."""

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import Augmentation, Concatenate
from speechllm_pl.data.batches import Buckets, EpochBatches
from speechllm_pl.data.cuts import Cuts, read_cuts
from speechllm_pl.data.dataset import SpeechDataset, start_worker
from speechllm_pl.data.handover import Handover


class SpeechDataModule(L.LightningDataModule):
    """Train, dev and test cuts of one corpus.

    Args:
        root: folder of the manifests, as `data_prep` writes them.
        train: manifest (`train.jsonl.gz`) or Shar folder (`shar/train`) of the training cuts, relative to root.
        dev: the same to validate on.
        test: the same for `test` and `predict`.
        max_duration: seconds of audio a batch, padding included, on each device; `auto`, which `speechllm fit`
            replaces, is what the plan says fits the device's memory.
        max_seconds: training utterances longer than this are left out, and counted aloud.
        num_buckets: buckets of utterances of like durations.
        shortest_first_epochs: epochs at the start that go from short utterances to long ones.
        num_workers: processes that read audio ahead, on each device; 0 reads in the training process.
        seed: of the order of batches, and of everything random about each.
        augmentations: what is done to training utterances, in this order (docs/augmentation.md).
    """

    def __init__(
        self,
        root: str,
        train: str = "train.jsonl.gz",
        dev: str = "dev.jsonl.gz",
        test: str = "test.jsonl.gz",
        max_duration: float | Literal["auto"] = 60.0,
        max_seconds: float = 30.0,
        num_buckets: int = 10,
        shortest_first_epochs: int = 0,
        num_workers: int = 0,
        seed: int = 0,
        augmentations: list[Augmentation] | None = None,
    ):
        super().__init__()
        self.root = Path(root)
        self.manifests = {"train": train, "dev": dev, "test": test}
        if max_duration == "auto":
            raise UserError("data.max_duration auto is for `speechllm fit` alone: give a number of seconds")
        self.max_duration = max_duration
        self.max_seconds = max_seconds
        self.num_buckets = num_buckets
        self.shortest_first_epochs = shortest_first_epochs
        self.num_workers = num_workers
        self.seed = seed
        if seed < 0:
            raise UserError(f"data.seed = {seed}: give 0 or more")
        self.augmentations = augmentations or []
        for augmentation in self.augmentations:
            if isinstance(augmentation, Concatenate) and augmentation.max_seconds > max_seconds:
                raise UserError(
                    f"Concatenate in data.augmentations: max_seconds {augmentation.max_seconds} is more than"
                    f" data.max_seconds = {max_seconds}, which the memory is planned for: lower it"
                )
        self._cuts: dict[str, Cuts] = {}
        self._buckets: dict[tuple[str, float], Buckets] = {}
        self._plan: EpochBatches | None = None  # of the training batches that were handed out last
        self._resumed: dict[str, Any] | None = None  # what a checkpoint said

    def setup(self, stage: str) -> None:
        """
        Raises:
            UserError: something that an augmentation needs is not there.
        """
        if stage == "fit":
            for augmentation in self.augmentations:
                augmentation.check()

    @property
    def duration_factor(self) -> float:
        """By how much augmentation may lengthen a batch of training: it is planned for that."""
        return math.prod(augmentation.duration_factor for augmentation in self.augmentations)

    def cuts(self, split: str) -> Cuts:
        """The cuts of `train`, `dev` or `test`, opened once.

        Raises:
            UserError: the manifest is missing, broken or empty.
        """
        if split not in self._cuts:
            cuts = read_cuts(self.root / self.manifests[split])
            self._cuts[split] = self._short_enough(cuts) if split == "train" else cuts
        return self._cuts[split]

    def buckets(self, split: str) -> Buckets:
        """How utterances are grouped into batches of `max_duration`."""
        key = split, self.max_duration
        if key not in self._buckets:
            factor = np.float32(self.duration_factor if split == "train" else 1)
            self._buckets[key] = Buckets(self.cuts(split).durations * factor, self.max_duration, self.num_buckets)
        return self._buckets[key]

    def train_dataloader(self) -> DataLoader:
        """Called anew every epoch (`reload_dataloaders_every_n_epochs: 1`), since every epoch has its own plan."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        shortest_first = epoch < self.shortest_first_epochs
        self._plan = self._batches("train", epoch=epoch, shortest_first=shortest_first, **self._position_in(epoch))
        if self._resumed and epoch == self._resumed["epoch"] + 1:
            self._leave_finished_epoch(len(self._plan))
        return self._loader("train", self._plan)

    def _position_in(self, epoch: int) -> dict[str, int]:
        """Where the run goes on: at the epoch's beginning, unless it was resumed in its midst."""
        state = self._resumed
        if state is None or epoch != state["epoch"]:
            return {}
        if state["batches"] == state["data"]["batches"]:  # finished, but for the trainer's own last things
            return {"start": len(self.buckets("train")), "steps": state["steps"]}
        if state["data"] == self._identity():
            return {"start": state["batches"], "steps": state["steps"]}
        rank_zero_warn(
            f"the training data, data.seed or data.max_duration is not what the checkpoint was made with: epoch"
            f" {epoch} begins again with its first batch"
        )
        return {"start": 0, "steps": state["steps"]}

    def _identity(self) -> dict[str, int]:
        """What the number of a batch has a meaning for."""
        return {"seed": self.seed, "cuts": len(self.cuts("train")), "batches": len(self.buckets("train"))}

    def _leave_finished_epoch(self, batches: int) -> None:
        """Let a run that stopped right after an epoch's last batch begin the next one with its first.

        Lightning takes the former epoch for finished if it had at least as many batches as the next one, but it
        had fewer if there were more ranks: so the numbers are made equal.
        """
        loop = cast(Any, self.trainer).fit_loop.epoch_loop
        progress = loop.batch_progress
        if loop.restarting and progress.is_last_batch:
            current = progress.current
            current.ready = current.started = current.processed = batches
            current.completed = batches - 1  # the loop counts the last one itself

    def val_dataloader(self) -> DataLoader:
        return self._loader("dev", self._batches("dev", shuffle=False, fill="empty"))

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", self._batches("test", shuffle=False, fill="empty"))

    predict_dataloader = test_dataloader

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands in the data: the epoch, its batches done over all ranks, the trainer's count of them."""
        if self._plan is None:
            return {}
        progress = cast(Any, self.trainer).fit_loop.epoch_loop.batch_progress
        steps = progress.current.processed
        done = len(self._plan.buckets) if progress.is_last_batch else self._plan.done_after(steps)
        return {"epoch": self._plan.epoch, "batches": done, "steps": steps, "data": self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict or None
        if self._plan is not None:  # sharded models are restored late, when Lightning has asked for batches already
            cast(Any, self.trainer).fit_loop._combined_loader = None  # let it ask again

    def _batches(self, split: str, **plan: Any) -> EpochBatches:
        rank, world_size = self._place()
        return EpochBatches(self.buckets(split), seed=self.seed, rank=rank, world_size=world_size, **plan)

    def _place(self) -> tuple[int, int]:
        """→ this process's rank, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, split: str, batches: EpochBatches) -> DataLoader:
        augmentations = self.augmentations if split == "train" else ()
        handover = Handover(self.num_workers)
        return DataLoader(
            SpeechDataset(self.cuts(split), augmentations, self.seed),
            sampler=batches,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=cast(Any, handover),
            worker_init_fn=partial(start_worker, handover=handover),
        )

    def _short_enough(self, cuts: Cuts) -> Cuts:
        kept = np.flatnonzero(cuts.durations <= self.max_seconds).astype(np.int32)
        left_out = len(cuts) - len(kept)
        if not left_out:
            return cuts
        rank_zero_info(f"left out {left_out} of {len(cuts)} training utterances longer than {self.max_seconds} s")
        if not len(kept):
            raise UserError(f"no training utterance is at most data.max_seconds = {self.max_seconds} s long")
        return cuts.select(kept)
