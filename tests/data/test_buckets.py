"""Batches of buckets are as full as their bounds allow, and have little padding."""

from collections import Counter

import numpy as np
import pytest
from durations import DURATIONS, SPREADS, made_up_durations, plan, seen

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.buckets import Buckets, Positions
from speechllm_pl.data.epoch_plan import EpochBatches


@pytest.mark.parametrize("spread", SPREADS)
def test_all_batches_of_a_bucket_are_of_its_size_but_for_the_last(spread: str) -> None:
    durations = SPREADS[spread]
    buckets = Buckets(durations, 30.0, 4)
    assert len(buckets.longest) <= 4
    sizes: dict[int, list[int]] = {}
    for batch in EpochBatches(buckets):
        bounds = [float(bound) for bound in buckets.longest]
        inside = {sum(bound < durations[index] for bound in bounds) for index in batch.indices}
        sizes.setdefault(inside.pop(), []).append(len(batch.indices))
        assert not inside
    for bucket, size in enumerate(buckets.batch_sizes):
        assert size == max(1, int(30 / float(buckets.longest[bucket]) + 1e-4))
        full = sizes[bucket].count(size)
        assert full >= len(sizes[bucket]) - 1
        assert max(sizes[bucket]) <= size


def test_buckets_are_chosen_for_few_batches() -> None:
    """Against bounds at equal counts, the obvious choice."""
    durations = made_up_durations(3000)
    bounds = np.sort(durations)[np.arange(1, 7) * 500 - 1]
    at_equal_counts = sum(-(-500 // int(30 / bound)) for bound in bounds)
    assert len(Buckets(durations, 30.0, 6)) < 0.95 * at_equal_counts


def test_the_largest_batches_are_the_longest_utterances_of_each_bucket() -> None:
    buckets = Buckets(DURATIONS, 30.0, 4)
    largest = buckets.largest_batches()
    bounds = [0.0, *map(float, buckets.longest)]
    for k, batch in enumerate(largest):
        inside = sorted(d for d in map(float, DURATIONS) if bounds[k] < d <= bounds[k + 1])
        assert sorted(DURATIONS[batch].tolist()) == inside[-int(buckets.batch_sizes[k]) :]
        assert DURATIONS[batch].max() == buckets.longest[k]
    assert len(largest) == len(buckets.longest) == 4


@pytest.mark.parametrize(("max_duration", "num_buckets"), [(0.0, 4), (-1.0, 4), (float("nan"), 4), (30.0, 0)])
def test_no_seconds_and_no_buckets_are_refused(max_duration: float, num_buckets: int) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        Buckets(DURATIONS, max_duration, num_buckets)


def test_a_cut_longer_than_a_batch_is_a_batch_of_its_own() -> None:
    assert sorted(plan(made_up_durations(4), max_duration=0.5)) == [[n] for n in range(4)]


def test_six_of_a_sixth_fill_a_batch() -> None:
    """Also where float32 cannot hold the duration."""
    for seconds in (0.1, 0.3, 1.1, 1.7, 4.9):
        batches = plan(np.full(60, seconds, np.float32), max_duration=6 * seconds)
        assert {len(batch) for batch in batches} == {6}


def test_buckets_keep_like_durations_together() -> None:
    """Padding is what buckets are for: with them, batches have less of it than without."""

    def padding(num_buckets: int) -> float:
        batches = plan(made_up_durations(500), num_buckets=num_buckets)
        padded = sum(len(batch) * made_up_durations(500)[batch].max() for batch in batches)
        return 1 - made_up_durations(500).sum() / padded

    assert padding(8) < padding(1) / 2


def made_up_positions(durations: np.ndarray, most: int, seed: int = 9) -> Positions:
    """An embedding every 80 ms, and 2 to 6 tokens of text a second."""
    text = durations * np.random.default_rng(seed).uniform(2, 6, len(durations))
    return Positions(np.ceil(durations * 12.5).astype(np.int32), text.round().astype(np.uint32), most)


def padded(batch: np.ndarray, positions: Positions) -> int:
    return len(batch) * int(positions.audio[batch].max() + 1 + positions.text[batch].max())


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("num_buckets", [1, 2, 7, 30])
@pytest.mark.parametrize("most", [20, 400, 600, 10_000])
def test_no_batch_has_more_positions_or_seconds_than_it_may(spread: str, num_buckets: int, most: int) -> None:
    durations = SPREADS[spread]
    positions = made_up_positions(durations, most)
    buckets = Buckets(durations, 30.0, num_buckets, positions)
    assert len(buckets.counts) == len(np.unique(buckets.of)) <= num_buckets
    batches = [batch.indices for batch in EpochBatches(buckets)]
    assert seen([batch.tolist() for batch in batches]) == Counter(range(len(durations)))
    assert len(batches) == len(buckets)
    for batch in batches:
        assert len(batch) == 1 or padded(batch, positions) <= most
        assert len(batch) == 1 or len(batch) * durations[batch].max() <= 30 * (1 + 1e-5)
    for k, (longest, size) in enumerate(zip(buckets.longest, buckets.batch_sizes, strict=True)):
        of_bucket = np.flatnonzero(buckets.of == k)
        one = int(positions.audio[of_bucket].max() + 1 + positions.text[of_bucket].max())
        assert longest == durations[of_bucket].max()
        assert size == max(1, min(int(30 / float(longest) + 1e-4), most // one))  # as many as fit


def test_buckets_divided_by_text_have_less_padding_than_by_duration_alone() -> None:
    """Text is about half of the positions: an embedding every 240 ms."""
    durations = np.random.default_rng(1).uniform(10, 20, 4000).astype(np.float32)
    positions = made_up_positions(durations, 733)._replace(audio=np.ceil(durations / 0.24).astype(np.int32))

    def share(buckets: Buckets) -> float:
        batches = [batch.indices for batch in EpochBatches(buckets)]
        real = int(positions.audio.sum() + positions.text.sum(dtype=np.int64)) + len(durations)
        return 1 - real / sum(padded(batch, positions) for batch in batches)

    assert share(Buckets(durations, 80.0, 20, positions)) < 0.75 * share(Buckets(durations, 80.0, 20))


def test_buckets_of_many_are_chosen_by_a_sample_and_hold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechllm_pl.data.buckets.SAMPLE", 500)
    durations = np.r_[made_up_durations(5000), np.float32([9.5, 0.2])]  # the extremes may not be in the sample
    positions = made_up_positions(durations, 500)
    for bounded in (None, positions):
        batches = [batch.indices for batch in EpochBatches(Buckets(durations, 30.0, 12, bounded))]
        assert seen([batch.tolist() for batch in batches]) == Counter(range(5002))
        assert all(len(batch) * durations[batch].max() <= 30 * (1 + 1e-5) for batch in batches)
    assert all(padded(batch, positions) <= 500 for batch in batches)


def test_the_largest_batches_have_as_much_padding_as_any_batch_can() -> None:
    durations = made_up_durations(400)
    for most in (60, 500):  # batches of one, and larger ones
        positions = made_up_positions(durations, most)
        buckets = Buckets(durations, 30.0, 10, positions)
        worst = dict.fromkeys(range(len(buckets.counts)), 0)
        for epoch in range(20):
            for batch in EpochBatches(buckets, epoch=epoch):
                k = int(buckets.of[batch.indices[0]])
                worst[k] = max(worst[k], padded(batch.indices, positions))
        for k, batch in enumerate(buckets.largest_batches()):
            assert (buckets.of[batch] == k).all()
            assert len(set(batch.tolist())) == len(batch)
            assert padded(batch, positions) >= worst[k]


def test_no_positions_are_refused() -> None:
    with pytest.raises(UserError, match="max_tokens 0"):
        Buckets(DURATIONS, 30.0, 4, made_up_positions(DURATIONS, 0))
