"""Which cuts make which batch: an epoch's plan, made by Lhotse's dynamic bucketing before the epoch starts.

Knowing the whole epoch gives an exact length (so progress bars tell the time left), as many batches to every
rank, and a run that resumes in mid-epoch with just the batches that were left.
"""

import random
import warnings
from collections.abc import Iterator
from typing import Any, cast

from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler
from torch.utils.data import Sampler

from speechllm_pl.core.errors import UserError


class EpochBatches(Sampler[CutSet]):
    """One rank's batches of one epoch.

    Args:
        cuts: an in-memory cut set.
        max_duration: seconds of audio a batch on each rank.
        num_buckets: utterances of like durations share a bucket.
        seed, epoch: the order is a function of both.
        shuffle: else the manifest's order within buckets.
        shortest_first: batches of short utterances before those of long ones, which lets CTC find its first
            alignments sooner (SortaGrad, arXiv 1512.02595).
        rank, world_size: batch i belongs to rank i modulo world_size.
        pad_to_world: repeat the first batches until every rank has as many. For training, where a rank
            with fewer batches would leave the others waiting; metrics must see every utterance once.
        start: batches of this rank that a resumed run has done already.
    """

    def __init__(
        self,
        cuts: CutSet,
        *,
        max_duration: float,
        num_buckets: int,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        shortest_first: bool = False,
        rank: int = 0,
        world_size: int = 1,
        pad_to_world: bool = True,
        start: int = 0,
    ):
        if shuffle:  # Lhotse shuffles within a buffer of some ten thousand cuts, neighbours in a sorted manifest
            cuts = cuts.shuffle(random.Random(f"{seed} {epoch}"))
        num_buckets = min(num_buckets, len(cuts) // 2)
        with warnings.catch_warnings():  # of cuts in memory, of a single bucket, of cuts longer than a batch
            warnings.simplefilter("ignore")
            sampler = DynamicBucketingSampler(
                cuts,
                max_duration=max_duration,
                num_buckets=num_buckets,
                duration_bins=cast(Any, None if num_buckets > 1 else []),  # no bounds to estimate for one bucket
                shuffle=shuffle,
                seed=seed,
                drop_last=False,
                rank=0,
                world_size=1,
            )
            sampler.set_epoch(epoch)
            batches = list(sampler)
        if shortest_first:
            batches.sort(key=lambda batch: max(cut.duration for cut in batch))
        if pad_to_world:
            if len(batches) < world_size:  # the same on every rank, so that none waits for another
                raise UserError(f"fewer training batches than processes ({world_size}): lower data.max_duration")
            batches += batches[: -len(batches) % world_size]
        # Lightning ends a run in which a rank has nothing to validate: an empty batch keeps it among the others.
        self.batches = batches[rank::world_size] or [CutSet.from_cuts([])]
        self.start = start

    def __len__(self) -> int:
        """Batches of the whole epoch, also when some are done: the trainer counts those as seen."""
        return len(self.batches)

    def __iter__(self) -> Iterator[CutSet]:
        yield from self.batches[self.start :]
