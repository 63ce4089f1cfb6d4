"""A LightningDataModule built on Lhotse cuts."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, cast

import lightning as L
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batches import EpochBatches
from speechllm_pl.data.dataset import SpeechDataset


class SpeechDataModule(L.LightningDataModule):
    """Train, dev and test cuts of one corpus.

    Args:
        root: folder of the manifests, as `data_prep` writes them.
        train: manifest of the training cuts, relative to root.
        dev: manifest to validate on, relative to root.
        test: manifest for `test` and `predict`, relative to root.
        max_duration: seconds of audio a batch, on each device.
        max_seconds: training utterances longer than this are left out, and counted aloud.
        num_buckets: buckets of utterances of like durations.
        shortest_first_epochs: epochs at the start that go from short utterances to long ones.
        num_workers: processes that read audio ahead, on each device; 0 reads in the training process.
        seed: of the order of batches.
    """

    def __init__(
        self,
        root: str,
        train: str = "train.jsonl.gz",
        dev: str = "dev.jsonl.gz",
        test: str = "test.jsonl.gz",
        max_duration: float = 60.0,
        max_seconds: float = 30.0,
        num_buckets: int = 10,
        shortest_first_epochs: int = 0,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        self.root = Path(root)
        self.manifests = {"train": train, "dev": dev, "test": test}
        self.max_duration = max_duration
        self.max_seconds = max_seconds
        self.num_buckets = num_buckets
        self.shortest_first_epochs = shortest_first_epochs
        self.num_workers = num_workers
        self.seed = seed
        self._cuts: dict[str, CutSet] = {}
        self._resume_at = {"epoch": -1, "batches": 0}

    def cuts(self, split: str) -> CutSet:
        """The cuts of `train`, `dev` or `test`, read once.

        Raises:
            UserError: the manifest is missing, broken or empty.
        """
        if split not in self._cuts:
            cuts = read_manifest(self.root / self.manifests[split])
            self._cuts[split] = self._short_enough(cuts) if split == "train" else cuts
        return self._cuts[split]

    def train_dataloader(self) -> DataLoader:
        """Called anew every epoch (`reload_dataloaders_every_n_epochs: 1`), since every epoch has its own plan."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        resumed = self._resume_at if self._resume_at["epoch"] == epoch else {"batches": 0}
        shortest_first = epoch < self.shortest_first_epochs
        loader = self._loader("train", epoch=epoch, shortest_first=shortest_first, start=resumed["batches"])
        if resumed is self._resume_at and not resumed["batches"]:
            self._leave_finished_epoch(len(loader))
        return loader

    def _leave_finished_epoch(self, batches: int) -> None:
        """Let a run that stopped right after an epoch's last batch begin the next one with its first.

        Lightning takes the former epoch for finished if it had at least as many batches as the next one, but the
        numbers differ from epoch to epoch: so they are made equal.
        """
        loop = cast(Any, self.trainer).fit_loop.epoch_loop
        progress = loop.batch_progress
        if loop.restarting and progress.is_last_batch:
            current = progress.current
            current.ready = current.started = current.processed = batches
            current.completed = batches - 1  # the loop counts the last one itself

    def val_dataloader(self) -> DataLoader:
        return self._loader("dev", shuffle=False, pad_to_world=False)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", shuffle=False, pad_to_world=False)

    predict_dataloader = test_dataloader

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands in the data: with the seed, that names the batches which are left."""
        if self.trainer is None:
            return {}
        epoch, progress = self.trainer.current_epoch, cast(Any, self.trainer.fit_loop.epoch_loop.batch_progress)
        if progress.is_last_batch:
            return {"epoch": epoch + 1, "batches": 0}
        return {"epoch": epoch, "batches": progress.current.processed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume_at = state_dict or self._resume_at

    def _loader(self, split: str, **plan: Any) -> DataLoader:
        batches = EpochBatches(
            self.cuts(split),
            max_duration=self.max_duration,
            num_buckets=self.num_buckets,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            **plan,
        )
        return DataLoader(SpeechDataset(), sampler=batches, batch_size=None, num_workers=self.num_workers)

    def _short_enough(self, cuts: CutSet) -> CutSet:
        kept = cuts.filter(lambda cut: cast(Cut, cut).duration <= self.max_seconds).to_eager()
        left_out = len(cuts) - len(kept)
        if left_out:
            rank_zero_info(f"left out {left_out} of {len(cuts)} training utterances longer than {self.max_seconds} s")
        if not len(kept):
            raise UserError(f"no training utterance is at most data.max_seconds = {self.max_seconds} s long")
        return kept


def read_manifest(path: Path) -> CutSet:
    """An in-memory cut set from a JSONL manifest, plain or gzipped.

    Raises:
        UserError: the file is missing, empty, or has a line that is no cut; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f"manifest {path} does not exist: prepare the data first (`make data`), or correct data.root")
    cuts = []
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                cuts.append(_cut_from_line(line, f"{path}, line {number}"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"manifest {path} cannot be read ({error}): prepare the data again") from error
    if not cuts:
        raise UserError(f"manifest {path} has no cuts: see the quarantine file beside it")
    return CutSet.from_cuts(cuts)


def _cut_from_line(line: str, place: str) -> Any:
    try:
        cut = deserialize_item(json.loads(line))
    except Exception as error:  # lhotse raises whatever the missing field leads to
        raise UserError(f"{place}: not a Lhotse cut: mend or delete this line, or prepare the data again") from error
    if len(getattr(cut, "supervisions", ())) != 1:
        raise UserError(f"{place}: cut {getattr(cut, 'id', '?')} must have exactly one supervision")
    if cut.duration <= 0:
        raise UserError(f"{place}: cut {cut.id} lasts 0 seconds: delete this line")
    return cut
