"""The LightningDataModule of Lhotse cuts."""

import math
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import Augmentation
from speechllm_pl.data.buckets import Buckets, Positions
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import Draw, EpochBatches
from speechllm_pl.data.identity import difference, identity, refuse_other_data
from speechllm_pl.data.loader import TIMEOUT_SECONDS, Loader, loader, start_server
from speechllm_pl.data.manifest import Manifest
from speechllm_pl.data.mixture import HeardCount, Mixture, TrainingCuts, TrainSource, sources_by_name
from speechllm_pl.data.positions import LlmInput, within_limit
from speechllm_pl.data.readers import chosen_workers, faster_reading, jumping, who_reads
from speechllm_pl.data.refused_settings import refuse_impossible
from speechllm_pl.data.run_position import RunPosition, leave_finished_epoch
from speechllm_pl.data.sample import balanced_sample
from speechllm_pl.data.shar_cuts import SharCuts
from speechllm_pl.data.uncached_audio import UncachedAudio
from speechllm_pl.storage.frame_cache import FrameCache


class SpeechDataModule(L.LightningDataModule):
    """Train, dev and test cuts; those to train on may come from several corpora.

    Args:
        root: Folder of the manifests, as `data_prep` writes them.
        train: Manifest (`train.jsonl.gz`) or Shar folder (`shar/train`) of the training cuts, relative to `root`.
            Several sources are given by name, each as such a path, or by its `cuts` and `weight`.
        dev: Manifest or Shar folder of the cuts to validate on, relative to `root`.
        test: Manifest or Shar folder of the cuts for `test` and `predict`, relative to `root`.
        max_duration: Seconds of audio in a training batch on each device, padding included. For `auto`, `speechllm fit`
            takes what the plan says fits the device's memory.
        val_max_duration: Seconds of audio in a batch of validation, `test` and `predict`, which keep no activations; by
            default as in training. For `auto`, the `speechllm` command takes what the plan says fits, up to several
            times `max_duration`.
        val_utterances: Number of utterances of dev in each validation during training: one sample for all of them, with
            equally many of each language. All of dev follows at the end. Null, or more than there are, takes all of dev
            always.
        max_tokens: Positions of the LLM's input in a training batch, padding included: audio embeddings, BOS and text
            tokens (stage 2 only). For `auto` it is what `max_duration` seconds of speech take; by default only seconds
            count.
        max_seconds: Seconds of the longest training utterance. Longer ones are left out, and their number is printed.
        num_buckets: Number of buckets of utterances of similar lengths.
        balance: Exponent, 0 to 1, of the hours of each language of each source in its share of an epoch: 1 leaves the
            shares as they are, 0 makes them equal.
        lanes: Number of parts of an epoch that are read side by side, where it is read from shards. With a multiple of
            the number of all loader processes, each of them reads parts of its own from beginning to end.
        shuffle_buffer: Number of utterances of a lane among which batches are shuffled.
        shortest_first_epochs: Number of epochs at the start that go from short utterances to long ones.
        num_workers: Number of processes on each device that read audio ahead. With 0 the training process reads; `auto`
            takes one for each available CPU but the one that trains, up to eight; of shards as many as divide lanes.
        timeout_seconds: Seconds without a batch from the loader processes after which the run ends and names what they
            are reading.
        seed: Seed of the order of batches, and of everything random about each.
        augmentations: Changes to training utterances, in this order (docs/augmentation.md).
        cache_frames: Folder, relative to `root`, for frames of a frozen pretrained encoder: what it lacks is computed
            before the first step, and no epoch reads audio or runs the encoder. `true` names it `frames`.
        allow_command_sources: Run the shell commands and open the addresses that manifests name instead of files. Only
            for manifests that you trust.
        other_data: Let a run continue on other data than it was trained on.
        max_skipped_share: Largest share of training utterances that cannot be read; above it the run ends. It is
            checked once 100 were due, and at the end of each epoch.
        llm_input: How stage 2 counts the LLM's positions of utterances; none in stage 1.
    """

    def __init__(
        self,
        root: str,
        train: str | dict[str, str | TrainSource] = "train.jsonl.gz",
        dev: str = "dev.jsonl.gz",
        test: str = "test.jsonl.gz",
        max_duration: float | Literal["auto"] = 60.0,
        val_max_duration: float | Literal["auto"] | None = None,
        val_utterances: int | None = 2_000,
        max_tokens: int | Literal["auto"] | None = None,
        max_seconds: float = 30.0,
        num_buckets: int = 10,
        balance: float = 1.0,
        lanes: int = 64,
        shuffle_buffer: int = 20_000,
        shortest_first_epochs: int = 0,
        num_workers: int | Literal["auto"] = 0,
        timeout_seconds: float = TIMEOUT_SECONDS,
        seed: int = 0,
        augmentations: list[Augmentation] | None = None,
        cache_frames: bool | str = False,
        allow_command_sources: bool = False,
        other_data: bool = False,
        max_skipped_share: float = 0.2,
        llm_input: Any = None,  # as LlmInput | None it would be a group of options
    ):
        super().__init__()
        self.root = Path(root)
        self.train = sources_by_name(train)
        self.manifests = {"dev": dev, "test": test}
        if max_duration == "auto":
            raise UserError("data.max_duration auto is for `speechllm fit` alone: give a number of seconds")
        self.max_duration = max_duration
        self.val_max_duration = None if val_max_duration == "auto" else val_max_duration
        self.val_utterances = val_utterances
        self.max_tokens = max_tokens
        self.llm_input: LlmInput | None = llm_input
        self.max_seconds = max_seconds
        self.num_buckets, self.balance = num_buckets, balance
        self.lanes, self.shuffle_buffer = lanes, shuffle_buffer
        self.shortest_first_epochs = shortest_first_epochs
        self.num_workers = num_workers
        self.timeout_seconds = timeout_seconds
        self.seed = seed
        self.allow_command_sources = allow_command_sources
        self.augmentations = augmentations or []
        self.other_data = other_data
        self.max_skipped_share = max_skipped_share
        self.frames_folder = self.root / ("frames" if cache_frames is True else cache_frames) if cache_frames else None
        self.frames: FrameCache | None = None  # what training and validation read in place of audio, set from outside
        refuse_impossible(vars(self) | {"cache_frames": cache_frames}, self.augmentations)
        self._sources: dict[str, Manifest | SharCuts] = {}  # of training, as they were opened
        self._identities: dict[str, dict[str, Any]] | None = None  # of these
        self._pin_memory = False
        self._cuts: dict[str, Manifest | SharCuts] = {}
        self._mixture: Mixture | None = None
        self._buckets: dict[tuple, Buckets] = {}
        self._plan: EpochBatches | None = None  # of the training batches that were handed out last
        self._heard: HeardCount | None = None  # in that plan's epoch
        self._resumed: RunPosition | None = None  # what a checkpoint said

    def setup(self, stage: str) -> None:
        """Check augmentations, which raise a UserError where they lack something, and count loader processes."""
        if stage == "fit":
            for augmentation in self.augmentations:
                augmentation.check()
            rank_zero_info(who_reads(self.num_workers, self.local_ranks, self.workers))
            if self.num_workers == "auto" and self.workers:  # Lightning knows no CPUs of a SLURM task
                warnings.filterwarnings("ignore", ".*does not have many workers")
        self._pin_memory = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        if self.workers:
            start_server()  # which gets ready while the model is built

    @property
    def local_ranks(self) -> int:
        """Number of the run's processes on this machine."""
        return self.trainer.num_devices if self.trainer else 1

    @property
    def workers(self) -> int:
        """Number of processes that read ahead for this rank."""
        from_shards = any((self.root / source.cuts).is_dir() for source in self.train.values())
        return chosen_workers(self.num_workers, self.local_ranks, self._place()[1], self.lanes * from_shards)

    def faster_reading(self) -> str:
        """Advice for a run that waits for data."""
        return faster_reading(self.num_workers, self.local_ranks)

    @property
    def duration_factor(self) -> float:
        """Factor by which augmentation may lengthen a training batch, which is planned for it."""
        return math.prod(augmentation.duration_factor for augmentation in self.augmentations)

    def cuts(self, split: str) -> Manifest | SharCuts | TrainingCuts:
        """Cuts of `train`, `dev` or `test`, opened once.

        Raises:
            UserError: a manifest is missing, broken or empty.
        """
        if split == "train":
            return self.mixture.cuts
        if split not in self._cuts:
            self._cuts[split] = self._read(self.manifests[split])
        return self._cuts[split]

    @property
    def mixture(self) -> Mixture:
        """Training cuts, and the composition of each epoch."""
        if self._mixture is None:
            self._mixture = Mixture(
                self._open_training_cuts(), self.train, self.balance, self.seed, self.lanes, self.shuffle_buffer
            )
            if self._mixture.from_shards and (told := jumping(self.lanes, self.workers, self._place()[1])):
                rank_zero_warn(told)
        return self._mixture

    def buckets(self, split: str) -> Buckets:
        """Buckets for batches of `max_duration` seconds, and in training of `max_tokens` positions."""
        max_duration = self.max_duration if split == "train" else self.val_max_duration or self.max_duration
        key = split, max_duration, self.max_tokens
        if key not in self._buckets:
            durations, positions = self.cuts(split).durations, None
            if split == "train":
                durations = durations * np.float32(self.duration_factor)
                positions = None if self.max_tokens is None else self._positions()
            self._buckets[key] = Buckets(durations, max_duration, self.num_buckets, positions)
        return self._buckets[key]

    def _positions(self) -> Positions:
        """Positions of the training utterances in the LLM's input.

        Raises:
            UserError: there is no LLM.
        """
        if self.llm_input is None:
            raise UserError("data.max_tokens counts positions of an LLM, and stage 1 has none: leave it out")
        most = self.llm_input.most(self.max_duration) if self.max_tokens == "auto" else int(self.max_tokens or 0)
        cuts, factor = self.mixture.cuts, self.duration_factor
        return Positions(self.llm_input.before_bos(cuts, factor), self.llm_input.text(cuts, factor), most)

    def train_dataloader(self) -> DataLoader:
        """Loader of one epoch, requested anew every epoch (`reload_dataloaders_every_n_epochs: 1`) for its plan."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        plan = self._batches(
            "train", draw=self.mixture.draw(epoch), epoch=epoch, shortest_first=epoch < self.shortest_first_epochs
        )
        self._plan = self._resumed.resumed(plan, self._identity(plan)) if self._resumed else plan
        self._heard = None
        if self._resumed and epoch == self._resumed.epoch + 1:
            leave_finished_epoch(cast(Any, self.trainer).fit_loop.epoch_loop, len(self._plan))
        return self._loader("train", self._plan)

    def heard(self, steps: int) -> tuple[dict[str, float], dict[str, float]]:
        """Epochs and hours of each language heard, when the trainer counts `steps` of this epoch."""
        assert self._plan is not None
        if self._heard is None:
            self._heard = HeardCount(self.mixture, self._plan)
        return self._heard.after(self._plan.done_after(steps))

    def _identity(self, plan: EpochBatches) -> dict[str, int]:
        """All that gives the number of a batch its meaning."""
        cuts, digest = len(self.cuts("train")), plan.plan.digest()
        return {"seed": self.seed, "cuts": cuts, "batches": plan.batches, "plan": digest}

    def val_dataloader(self) -> DataLoader:
        """Loader of all of dev, but in `fit` of the sample."""
        return self.dev_dataloader(None if self._all_of_dev_counts else self.dev_sample)

    def dev_dataloader(self, utterances: np.ndarray | None = None) -> DataLoader:
        """Loader of these utterances of dev, each once; default is all."""
        draw = Draw(utterances) if utterances is not None else None
        return self._loader("dev", self._batches("dev", draw=draw, shuffle=False, fill="empty"))

    @property
    def dev_sample(self) -> np.ndarray | None:
        """Utterances to validate on during training, a function of data and seed; None for all of dev."""
        cuts = cast(Manifest | SharCuts, self.cuts("dev"))
        if self.val_utterances is None or len(cuts) <= self.val_utterances:
            return None
        return balanced_sample(cuts.languages, self.val_utterances, self.seed)

    def dev_share(self, *, whole: bool = False) -> str:
        """Describe the utterances behind this command's validation figures, or behind those of all of dev."""
        total = len(self.cuts("dev"))
        sampled = not (whole or self._all_of_dev_counts) and self.dev_sample is not None
        return f"a sample of {self.val_utterances:,} of {total:,}" if sampled else f"all {total:,}"

    @property
    def _all_of_dev_counts(self) -> bool:
        return self.trainer is None or self.trainer.state.fn != "fit"

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", self._batches("test", shuffle=False, fill="empty"))

    predict_dataloader = test_dataloader

    def refuse_other_data(self, state: dict[str, Any]) -> str:
        """Compare the training data with that of a run's state, as `state_dict` had it.

        Returns:
            What has changed, in words, where it may.

        Raises:
            UserError: it may not.
        """
        former = state.get("sources")
        if not former:  # of an earlier version
            return ""
        if not self.other_data:
            refuse_other_data(former, self._identity_of_sources())
        return difference(former, self._identity_of_sources())

    def _identity_of_sources(self) -> dict[str, dict[str, Any]]:
        if self._identities is None:
            _ = self.mixture  # which opens them
            places = {name: str(self.root / source.cuts) for name, source in self.train.items()}
            self._identities = {name: identity(cuts, places[name]) for name, cuts in self._sources.items()}
        return self._identities

    def state_dict(self) -> dict[str, Any]:
        """Position of the run in the data: epoch, batches done over all ranks, and the trainer's count of them."""
        if self._plan is None:
            return {}
        progress = cast(Any, self.trainer).fit_loop.epoch_loop.batch_progress
        position = RunPosition.of(self._plan, progress, self._identity(self._plan))
        return {**position.state(), "sources": self._identity_of_sources()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = RunPosition.of_state(state_dict)
        if self._plan is not None:  # sharded models are restored late, when Lightning has asked for batches already
            self._have_batches_asked_for_again()

    def use_frames(self, frames: FrameCache) -> None:
        """Have training and validation read frames in place of audio."""
        self.frames = frames
        self._have_batches_asked_for_again()

    def _have_batches_asked_for_again(self) -> None:
        cast(Any, self.trainer).fit_loop._combined_loader = None

    def uncached(self, split: str, frames: FrameCache) -> Loader:
        """Loader of the audio of all utterances of a split whose frames are not there; equally many batches a rank."""
        batches = self._batches(split, shuffle=False, fill="empty")
        return self._read_ahead(UncachedAudio(self.cuts(split), frames), batches)

    def _batches(self, split: str, **plan: Any) -> EpochBatches:
        rank, ranks = self._place()
        return EpochBatches(self.buckets(split), seed=self.seed, rank=rank, world_size=ranks, **plan)

    def _place(self) -> tuple[int, int]:
        """Rank of this process, and number of ranks."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, split: str, batches: EpochBatches) -> Loader:
        augmentations = self.augmentations if split == "train" else ()
        texts_alone = split == "train" and self.llm_input is not None
        given = {"texts_alone": texts_alone, "frames": None if split == "test" else self.frames}
        return self._read_ahead(SpeechDataset(self.cuts(split), augmentations, self.seed, **given), batches)

    def _read_ahead(self, dataset: SpeechDataset | UncachedAudio, batches: EpochBatches) -> Loader:
        return loader(dataset, batches, self.workers, self.timeout_seconds, self._pin_memory)

    def _read(self, name: str) -> Manifest | SharCuts:
        return read_cuts(self.root / name, allow_commands=self.allow_command_sources)

    def _open_training_cuts(self) -> TrainingCuts:
        self._sources = {name: self._read(source.cuts) for name, source in self.train.items()}
        cuts = TrainingCuts(self._sources, self.max_seconds)
        if cuts.left_out:
            total = len(cuts) + cuts.left_out
            rank_zero_info(f"left out {cuts.left_out} of {total} training utterances longer than {self.max_seconds} s")
        return within_limit(cuts, self.llm_input, self.duration_factor) if self.llm_input else cuts
