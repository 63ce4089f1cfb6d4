"""Made-up durations, and the batches that are planned of them."""

from collections import Counter

import numpy as np

from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.epoch_plan import EpochBatches


def made_up_durations(count: int, seed: int = 0) -> np.ndarray:
    """1 to 9 seconds."""
    return np.random.default_rng(seed).uniform(1, 9, count).round(2).astype(np.float32)


def plan(durations: np.ndarray, *, max_duration: float = 30.0, num_buckets: int = 4, **options) -> list[list[int]]:
    batches = EpochBatches(Buckets(durations, max_duration, num_buckets), **options)
    return [batch.indices.tolist() for batch in batches]


def seen(batches: list[list[int]]) -> Counter:
    return Counter(index for batch in batches for index in batch)


DURATIONS = made_up_durations(83)
ONCE = Counter(range(83))
SPREADS = {
    "uniform": DURATIONS,
    "all the same": np.full(50, 3.7, np.float32),
    "two lengths": np.repeat(np.float32([1.5, 6.0]), [40, 30]),
    "some longer than a batch": np.r_[DURATIONS, np.float32([31, 45.5, 100])],
    "a long tail": np.random.default_rng(1).lognormal(1, 1, 300).clip(0.1, 200).astype(np.float32),
}
