"""Languages get the share that the formula says, no utterance falls behind, and an epoch depends on nothing else."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet
from scipy.stats import chisquare

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.epoch_plan import Draw, EpochBatches
from speechllm_pl.data.mixture import Group, HeardCount, Mixture, TrainingCuts, TrainSource


class Made:
    """Cuts of which only the lengths are known, perhaps in shards."""

    characters = "ab"

    def __init__(self, languages: str, durations: np.ndarray, shard_starts: np.ndarray | None = None):
        self.language_codes = tuple(sorted(set(languages.split())))
        self.languages = np.array([self.language_codes.index(code) for code in languages.split()], np.uint8)
        self.durations = durations.astype(np.float32)
        if shard_starts is not None:
            self.shard_starts = shard_starts

    def texts(self) -> Iterator[str]:
        yield from ["ab"] * len(self)

    def __len__(self) -> int:
        return len(self.durations)

    def __getitem__(self, index: int) -> int:  # stands for the cut
        return index


def made(seed: int = 0, shards: bool = False, **counts: int) -> Made:
    """So many utterances of each language, mixed, of 1 to 9 s."""
    draw = np.random.default_rng(seed)
    languages = draw.permutation([code for code, count in counts.items() for _ in range(count)])
    starts = np.r_[np.arange(0, len(languages), 10), len(languages)] if shards else None
    return Made(" ".join(languages), draw.uniform(1, 9, len(languages)), starts)


def mixture(sources: dict[str, Made], weights: dict[str, float] | None = None, **options) -> Mixture:
    cuts = TrainingCuts(sources)  # type: ignore[arg-type]
    named = {name: TrainSource("", (weights or {}).get(name, 1.0)) for name in sources}
    return Mixture(cuts, named, **options)


THREE = {"a": made(en=900, de=90, pl=10)}


def expected_shares(seconds: list[float], weights: list[float], alpha: float) -> np.ndarray:
    """The formula, once more."""
    loads = [weight * each**alpha for weight, each in zip(weights, seconds, strict=True)]
    return np.array(loads) / sum(loads)


def seconds_of(mixed: Mixture, utterances: np.ndarray) -> np.ndarray:
    groups, durations = mixed.cuts.group_of[utterances], mixed.cuts.durations[utterances]
    return np.array([durations[groups == group].sum() for group in range(len(mixed.groups))])


# shares


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_shares_follow_the_hours_to_alpha(alpha: float) -> None:
    mixed = mixture(THREE, alpha=alpha)
    assert mixed.groups == [Group("a", "de"), Group("a", "en"), Group("a", "pl")]
    epochs = 400
    heard = sum(seconds_of(mixed, mixed.draw(epoch).utterances) for epoch in range(epochs))
    own = seconds_of(mixed, np.arange(1000)).tolist()
    np.testing.assert_allclose(heard / heard.sum(), expected_shares(own, [1, 1, 1], alpha), rtol=0.01)
    np.testing.assert_allclose(heard.sum() / epochs, sum(own), rtol=0.01)  # an epoch lasts as long as the data


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_over_seeds_and_epochs_the_numbers_drawn_are_as_expected(alpha: float) -> None:
    """A chi-square test of the number of utterances; and one that is a little off would not pass."""
    drawn = np.zeros(3)
    for seed in range(40):
        mixed = mixture(THREE, alpha=alpha, seed=seed)
        for epoch in range(25):
            drawn += np.bincount(mixed.cuts.group_of[mixed.draw(epoch).utterances], minlength=3)
    own, means = mixed.seconds, mixed.seconds / mixed.utterances
    shares = expected_shares(own.tolist(), [1, 1, 1], alpha) / means  # of utterances, which differ in length
    assert chisquare(drawn, shares / shares.sum() * drawn.sum()).pvalue > 0.01
    other = expected_shares(own.tolist(), [1, 1, 1], alpha + 0.02) / means
    assert chisquare(drawn, other / other.sum() * drawn.sum()).pvalue < 1e-6


def test_how_a_slice_is_rounded_is_exact_in_expectation() -> None:
    """Over seeds, the slice of one epoch is rounded up as often as its fraction says."""
    mixed = mixture(THREE, alpha=0.5)
    fractions = mixed.rates * mixed.utterances % 1
    seeds = 2000
    sizes = []
    for seed in range(seeds):
        other = Mixture(mixed.cuts, {"a": TrainSource("")}, alpha=0.5, seed=seed)
        sizes.append(other.drawn_before(8) - other.drawn_before(7))
    ups = (np.array(sizes) - np.floor(mixed.rates * mixed.utterances)).sum(axis=0)
    assert set(np.unique(np.array(sizes) - np.floor(mixed.rates * mixed.utterances))) == {0, 1}
    for up, fraction in zip(ups, fractions, strict=True):
        assert chisquare([up, seeds - up], [seeds * fraction, seeds * (1 - fraction)]).pvalue > 0.001


def test_every_utterance_is_as_likely_as_its_neighbours() -> None:
    """This holds in the first epoch already, which has less than all of a group."""
    counts = np.zeros(1000)
    for seed in range(600):
        mixed = mixture(THREE, alpha=0.3, seed=seed)
        np.add.at(counts, mixed.draw(0).utterances, 1)
    of_en = counts[mixed.cuts.group_of == 1]
    assert 0 < of_en.mean() < 600
    chance = of_en.mean() / 600
    deviations = (of_en - of_en.mean()) ** 2 / (600 * chance * (1 - chance))
    assert 0.8 < deviations.mean() < 1.2  # binomial, as 900 independent utterances would be


@pytest.mark.parametrize("shards", [False, True])
def test_no_utterance_is_ahead_of_another_of_its_group_by_more_than_one(shards: bool) -> None:
    mixed = mixture({"a": made(en=90, de=30, pl=5, shards=shards)}, alpha=0.4)
    counts = np.zeros(125)
    for epoch in range(12):
        np.add.at(counts, mixed.draw(epoch).utterances, 1)
        for group in range(3):
            of_group = counts[mixed.cuts.group_of == group]
            assert of_group.max() - of_group.min() <= 1
            assert of_group.sum() == mixed.drawn_before(epoch + 1)[group] - mixed.drawn_before(0)[group]
    assert counts[mixed.cuts.group_of == 2].min() > counts[mixed.cuts.group_of == 1].max() > 3


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_with_alpha_1_every_utterance_comes_once_an_epoch(shards: bool, weight: float) -> None:
    mixed = mixture({"a": made(en=301, de=47, shards=shards)}, {"a": weight})
    for epoch in (0, 1, 2, 1000, 123_456):
        assert sorted(mixed.draw(epoch).utterances.tolist()) == list(range(348))


def test_weights_are_of_sources_and_languages_of_each_are_their_own_groups() -> None:
    sources = {"mls": made(en=400, de=100), "common_voice": made(seed=1, de=200, pl=20)}
    mixed = mixture(sources, {"mls": 1.0, "common_voice": 0.5}, alpha=0.7)
    assert mixed.groups == [("mls", "de"), ("mls", "en"), ("common_voice", "de"), ("common_voice", "pl")]
    np.testing.assert_allclose(mixed.shares, expected_shares(mixed.seconds.tolist(), [1, 1, 0.5, 0.5], 0.7))
    np.testing.assert_array_equal(mixed.utterances, [100, 400, 200, 20])


def test_seed_and_epoch_and_nothing_else_determine_a_draw() -> None:
    def drawn(seed: int, epoch: int, shards: bool = True) -> list[int]:
        return mixture({"a": made(en=60, de=30, shards=shards)}, alpha=0.5, seed=seed).draw(epoch).utterances.tolist()

    assert drawn(1, 4) == drawn(1, 4)
    assert len({tuple(drawn(seed, epoch)) for seed in (1, 2) for epoch in (3, 4)}) == 4
    assert len({tuple(drawn(seed, epoch, shards=False)) for seed in (1, 2) for epoch in (3, 4)}) == 4


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_an_alpha_that_means_nothing_is_refused(alpha: float) -> None:
    with pytest.raises(UserError, match=r"data\.balance"):
        SpeechDataModule("nowhere", balance=alpha)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_means_nothing_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=r"data\.train\.mls has weight"):
        SpeechDataModule("nowhere", train={"mls": TrainSource("mls/train.jsonl.gz", weight)})


def test_a_source_may_be_its_path_alone() -> None:
    assert SpeechDataModule("nowhere", train={"mls": "x.jsonl.gz"}).train == {"mls": TrainSource("x.jsonl.gz", 1.0)}


def test_copies_of_an_utterance_within_an_epoch_are_numbered() -> None:
    utterances = np.array([3, 1, 3, 0, 3, 1, 2, 2, 2, 2], np.int32)
    batches = EpochBatches(Buckets(np.full(4, 5.0, np.float32), 10.0, 1), Draw(utterances))
    seen = [pair for batch in batches for pair in zip(batch.indices.tolist(), batch.copies.tolist(), strict=True)]
    expected = [(each, copy) for each in range(4) for copy in range(utterances.tolist().count(each))]
    assert sorted(seen) == expected
    once = EpochBatches(Buckets(np.full(4, 5.0, np.float32), 10.0, 1))
    assert all(batch.copies is None for batch in once)


# several sources as one


def test_cuts_of_several_sources_follow_each_other_without_the_long_ones() -> None:
    first, second = made(en=20, de=5), made(seed=1, de=30)
    cuts = TrainingCuts({"a": first, "b": second}, max_seconds=5.0)  # type: ignore[dict-item]
    short = [n for n in range(25) if first.durations[n] <= 5], [n for n in range(30) if second.durations[n] <= 5]
    assert list(cuts) == [*short[0], *short[1]]
    assert cuts[-1] == short[1][-1]
    assert cuts[2:4] == short[0][2:4]
    assert cuts.left_out == 55 - len(cuts) > 0
    np.testing.assert_array_equal(cuts.durations, np.r_[first.durations[short[0]], second.durations[short[1]]])
    with pytest.raises(IndexError):
        cuts[len(cuts)]


def test_a_shard_stays_together_and_in_order() -> None:
    source = made(en=100, de=50, shards=True)
    mixed = mixture({"plain": made(seed=3, en=70), "a": source}, alpha=0.6)
    draw = mixed.draw(5)
    assert draw.at is not None
    assert 0 <= draw.at.min() < draw.at.max() < 1
    for group in (1, 2):
        inside = mixed.cuts.group_of[draw.utterances] == group
        rows = draw.utterances[inside] - 70
        assert (np.diff(draw.at[inside]) > 0).all()
        np.testing.assert_allclose(np.diff(draw.at[inside]), 1 / inside.sum())  # evenly over the epoch
        shards = rows // 10
        changes = np.flatnonzero(np.diff(shards))
        assert len(changes) + 1 <= 2 * 15 + 1  # two passes have 15 shards each
        steps = np.diff(rows)[np.diff(shards) == 0]
        assert (steps > 0).mean() > 0.9  # but where a pass begins anew in the same shard


# what was heard


def test_what_was_heard_is_what_the_batches_had() -> None:
    sources = {"a": made(en=90, de=30), "b": made(seed=1, de=10, pl=5, shards=True)}
    mixed = mixture(sources, alpha=0.4)
    buckets = Buckets(mixed.cuts.durations, 20.0, 3)
    language = np.array([group.language for group in mixed.groups])[mixed.cuts.group_of]
    counts, seconds = Counter(), Counter()
    starts = mixed.drawn_before(0)
    assert (starts == 0).all()
    for epoch in range(5):
        batches = EpochBatches(buckets, mixed.draw(epoch), epoch=epoch)
        heard, resumed = HeardCount(mixed, batches), HeardCount(mixed, batches)
        for number, batch in enumerate(batches, start=1):
            counts.update(language[batch.indices].tolist())
            for index in batch.indices:
                seconds[str(language[index])] += float(mixed.cuts.durations[index])
            epochs, hours = heard.after(number)
            assert isinstance(epochs["de"], float)
            assert epochs == pytest.approx({code: counts[code] / (language == code).sum() for code in heard.languages})
            assert hours == pytest.approx({code: seconds[code] / 3600 for code in heard.languages})
        for at_once, one_by_one in zip(resumed.after(number), (epochs, hours), strict=True):
            assert at_once == pytest.approx(one_by_one)


def test_the_table_tells_hours_shares_and_epochs() -> None:
    mixed = mixture({"mls": Made("en en en de", np.array([3600, 3600, 1800, 900]))}, alpha=0.5)
    title, german, english = mixed.table()
    assert title.split() == ["hours", "share", "epochs", "an", "epoch"]
    assert german.split() == ["mls", "de", "0.25", "24.0%", "2.643"]  # sqrt(0.25) of sqrt(0.25) + sqrt(2.5)
    assert english.split() == ["mls", "en", "2.50", "76.0%", "0.836"]


# from configuration


def test_sources_and_balance_come_from_the_configuration(corpus: Path, tmp_path: Path) -> None:
    CutSet.from_file(corpus / "dev.jsonl.gz").to_file(tmp_path / "more.jsonl.gz")
    train = {"own": TrainSource("train.jsonl.gz"), "more": TrainSource(str(tmp_path / "more.jsonl.gz"), 0.5)}
    data = SpeechDataModule(str(corpus), train=train, balance=0.5, max_duration=3.0, num_buckets=2)
    assert [tuple(group) for group in data.mixture.groups] == [
        *(("own", "de"), ("own", "en")),
        *(("more", "de"), ("more", "en")),
    ]
    np.testing.assert_allclose(
        data.mixture.shares, expected_shares(data.mixture.seconds.tolist(), [1, 1, 0.5, 0.5], 0.5)
    )
    ids = {id_ for batch in data.train_dataloader() for id_ in batch.ids}
    assert any(id_.startswith("train-") for id_ in ids)
    assert any(id_.startswith("dev-") for id_ in ids)


def test_no_source_at_all_is_refused(corpus: Path) -> None:
    with pytest.raises(UserError, match="names no source"):
        SpeechDataModule(str(corpus), train={})


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_source_with_a_share_gets_it_and_the_others_divide_the_rest_as_before(alpha: float) -> None:
    sources = {"audio": made(1, en=300, de=60), "more": made(2, en=50), "text": made(3, en=900, pl=100)}
    cuts = TrainingCuts(sources)  # type: ignore[arg-type]
    given = {"audio": TrainSource("", 2.0), "more": TrainSource(""), "text": TrainSource("", share=0.7)}
    mixed = Mixture(cuts, given, alpha)
    own = np.array([group.source == "text" for group in mixed.groups])
    assert mixed.shares[own].sum() == pytest.approx(0.7)
    before = mixture({name: sources[name] for name in ("audio", "more")}, {"audio": 2.0}, alpha=alpha)
    assert mixed.shares[~own] == pytest.approx(0.3 * before.shares)
    seconds = [
        cuts.durations[mixed.draw(epoch).utterances][cuts.group_of[mixed.draw(epoch).utterances] >= 3].sum()
        for epoch in range(4)
    ]
    assert np.mean(seconds) == pytest.approx(0.7 * cuts.durations.sum(), rel=0.02)


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ({"a": TrainSource("a", share=0.5)}, "leave nothing for others"),
        ({"a": "a", "b": TrainSource("b", share=1.0)}, "give one above 0 and below 1"),
        ({"a": "a", "b": TrainSource("b", share=0.5), "c": TrainSource("c", share=0.5)}, "leave nothing for others"),
    ],
)
def test_shares_that_leave_nothing_are_refused(sources: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        SpeechDataModule(root="nowhere", train=sources)
