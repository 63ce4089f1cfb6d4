import json
import random

import jiwer
import numpy as np
import pytest
from scipy import stats

from speechllm_pl.core.metrics import (
    ErrorCounts,
    ScoredUtterance,
    aligned_listing,
    character_errors,
    marked_words,
    paired_difference,
    score,
    table,
    word_errors,
)


def levenshtein(ours, theirs) -> int:
    """Edit distance, cell by cell."""
    cost = np.zeros((len(ours) + 1, len(theirs) + 1), dtype=int)
    cost[:, 0], cost[0, :] = range(len(ours) + 1), range(len(theirs) + 1)
    for i in range(1, len(ours) + 1):
        for j in range(1, len(theirs) + 1):
            change = cost[i - 1, j - 1] + (ours[i - 1] != theirs[j - 1])
            cost[i, j] = min(change, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    return int(cost[-1, -1])


def random_pairs(count: int, seed: int, shortest: int = 1) -> list[tuple[str, str]]:
    rng = random.Random(seed)

    def text(shortest: int) -> str:
        return " ".join(rng.choice(["a", "ab", "abc", "é", "x'y"]) for _ in range(rng.randint(shortest, 8)))

    return [(text(shortest), text(0)) for _ in range(count)]


def scored(pairs, languages="en"):
    tags = [languages[i % len(languages)] if isinstance(languages, list) else languages for i in range(len(pairs))]
    ids = [f"utterance-{i:03d}" for i in range(len(pairs))]
    return score(ids, tags, [pair[0] for pair in pairs], [pair[1] for pair in pairs])


@pytest.mark.parametrize("seed", range(3))
def test_pooled_rates_are_exactly_those_of_jiwer(seed):
    pairs = random_pairs(100, seed)
    references, hypotheses = map(list, zip(*pairs, strict=True))
    row = table(scored(pairs), samples=10)["languages"]["en"]
    expected = jiwer.process_words(references, hypotheses)
    assert row["wer"] == jiwer.wer(references, hypotheses)
    assert row["cer"] == jiwer.cer(references, hypotheses)
    assert row["insertions"] == expected.insertions
    assert row["deletions"] == expected.deletions
    assert row["substitutions"] == expected.substitutions
    assert row["words"] == sum(len(reference.split()) for reference in references)
    assert row["utterances"] == 100


def test_errors_are_the_edit_distance_also_with_empty_texts():
    for reference, hypothesis in random_pairs(200, seed=7, shortest=0):
        words, characters = word_errors(reference, hypothesis), character_errors(reference, hypothesis)
        assert words.errors == levenshtein(reference.split(), hypothesis.split())
        assert characters.errors == levenshtein(reference, hypothesis)
        assert (words.reference, characters.reference) == (len(reference.split()), len(reference))


def test_an_empty_reference_makes_every_word_an_insertion():
    assert word_errors("", "two words") == ErrorCounts(insertions=2)
    assert character_errors(" ", "ab c") == ErrorCounts(insertions=4)
    assert word_errors("", "two words").rate == 2.0
    assert word_errors("", "") == ErrorCounts()
    assert ErrorCounts().rate == 0.0


def test_an_empty_hypothesis_deletes_every_word():
    assert word_errors("two words", "") == ErrorCounts(deletions=2, reference=2)
    assert word_errors("two words", "  ").rate == 1.0


def test_counts_add_up_field_by_field():
    assert ErrorCounts(1, 2, 3, 10) + ErrorCounts(4, 5, 6, 20) == ErrorCounts(5, 7, 9, 30)
    assert (ErrorCounts(1, 2, 3, 10) + ErrorCounts(0, 0, 0, 20)).rate == 6 / 30


def test_average_is_the_plain_mean_over_languages_not_over_words():
    utterances = score(
        ["1", "2", "3"],
        ["en", "de", "en"],
        ["a b c d", "eins zwei", "e f g h"],
        ["a b c d", "eins drei", "x f g h"],
    )
    scores = table(utterances, samples=20)
    assert list(scores["languages"]) == ["de", "en"]
    assert scores["languages"]["en"]["wer"] == 1 / 8
    assert scores["languages"]["de"]["wer"] == 1 / 2
    assert scores["average"]["wer"] == (1 / 8 + 1 / 2) / 2
    cer = [scores["languages"][language]["cer"] for language in ("en", "de")]
    assert scores["average"]["cer"] == pytest.approx(sum(cer) / 2)


def test_the_table_is_strict_json_of_the_agreed_shape():
    scores = table(scored([("", "made up"), ("a", "a")], languages=["en", "de"]), samples=20)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert set(scores) == {"average", "languages"}
    assert set(scores["average"]) == {"wer", "cer", "confidence_interval"}
    assert set(scores["languages"]["en"]) == {
        *("wer", "cer", "words", "insertions", "deletions", "substitutions", "utterances"),
        "confidence_interval",
    }


def test_a_table_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no utterances"):
        table([])


def test_sequences_of_different_length_are_refused():
    with pytest.raises(ValueError):
        score(["1"], ["en"], ["a", "b"], ["a"])


def interval(errors, words, **options):
    """The interval of utterances of one language with these counts."""
    utterances = [
        ScoredUtterance(
            str(i), "en", "", "", ErrorCounts(substitutions=int(e), reference=int(w)), ErrorCounts(reference=1)
        )
        for i, (e, w) in enumerate(zip(errors, words, strict=True))
    ]
    return tuple(table(utterances, **options)["languages"]["en"]["confidence_interval"])


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bootstrap_interval_agrees_with_scipy(level):
    rng = np.random.default_rng(3)
    words = rng.integers(1, 20, size=150)
    errors = rng.binomial(words, 0.2)

    def pooled(errors, words, axis=-1):
        return errors.sum(axis=axis) / words.sum(axis=axis)

    expected = stats.bootstrap(
        (errors, words),
        pooled,
        paired=True,
        vectorized=True,
        n_resamples=5000,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    low, high = interval(errors, words, samples=5000, seed=1, level=level)
    tolerance = 0.05 * (expected.high - expected.low)
    assert (low, high) == (
        pytest.approx(expected.low, abs=tolerance),
        pytest.approx(expected.high, abs=tolerance),
    )
    assert low < errors.sum() / words.sum() < high


def test_bootstrap_depends_on_the_seed_alone():
    errors, words = np.array([0, 1, 2, 0, 3]), np.array([4, 4, 4, 4, 4])
    assert interval(errors, words, seed=4) == interval(errors, words, seed=4)
    assert interval(np.zeros(5), words) == (0.0, 0.0)


def test_interval_of_the_average_resamples_each_language_on_its_own():
    pairs = random_pairs(60, seed=11)
    utterances = scored(pairs, languages=["en", "de", "fr"])
    scores = table(utterances, samples=3000, seed=2)
    rng = np.random.default_rng(9)
    means = []
    for _ in range(3000):
        rates = []
        for language in ("en", "de", "fr"):
            members = [utterance.words for utterance in utterances if utterance.language == language]
            drawn = [members[i] for i in rng.integers(len(members), size=len(members))]
            rates.append(sum(c.errors for c in drawn) / sum(c.reference for c in drawn))
        means.append(sum(rates) / 3)
    expected = np.percentile(means, [2.5, 97.5])
    assert scores["average"]["confidence_interval"] == pytest.approx(expected, rel=0.05)


def paired_counts(seed: int, size: int = 150) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of words, and of errors of two systems that often err in the same utterances."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 20, size=size)
    hard = rng.uniform(0, 0.6, size=size)
    return words, rng.binomial(words, hard), rng.binomial(words, 0.8 * hard)


def counted(errors, words, language="en"):
    return [
        ScoredUtterance(
            f"{language}-{i}", language, "", "", ErrorCounts(substitutions=int(e), reference=int(w)), ErrorCounts()
        )
        for i, (e, w) in enumerate(zip(errors, words, strict=True))
    ]


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_of_a_difference_agrees_with_scipy(level):
    words, one, other = paired_counts(seed=4)

    def difference(one, other, words, axis=-1):
        return one.sum(axis=axis) / words.sum(axis=axis) - other.sum(axis=axis) / words.sum(axis=axis)

    expected = stats.bootstrap(
        (one, other, words),
        difference,
        paired=True,
        vectorized=True,
        n_resamples=5000,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    pair = counted(one, words), counted(other, words)
    found = paired_difference(*pair, samples=5000, seed=1, level=level)
    low, high = found["confidence_interval"]
    tolerance = 0.05 * (expected.high - expected.low)
    assert (low, high) == (
        pytest.approx(expected.low, abs=tolerance),
        pytest.approx(expected.high, abs=tolerance),
    )
    rates = [table(utterances, samples=5)["average"]["wer"] for utterances in pair]
    assert found["wer_change"] == pytest.approx(rates[0] - rates[1])
    assert 0 < low < found["wer_change"] < high
    assert json.loads(json.dumps(found)) == found


def test_the_difference_of_the_average_is_the_mean_of_those_of_the_languages():
    (words, one, other), (fewer, first, second) = paired_counts(1, size=40), paired_counts(2, size=10)
    ours = counted(one, words) + counted(first, fewer, "de")
    others = counted(other, words) + counted(second, fewer, "de")
    found = paired_difference(ours, others, samples=3000)
    rates = [table(utterances, samples=5)["average"]["wer"] for utterances in (ours, others)]
    assert found["wer_change"] == pytest.approx(rates[0] - rates[1])
    rng, changes = np.random.default_rng(9), []
    for _ in range(3000):
        drawn = [
            (rng.integers(len(n), size=len(n)), n, a - b) for n, a, b in ((words, one, other), (fewer, first, second))
        ]
        changes.append(np.mean([change[i].sum() / n[i].sum() for i, n, change in drawn]))
    assert found["confidence_interval"] == pytest.approx(np.percentile(changes, [2.5, 97.5]), rel=0.1, abs=0.003)


def test_systems_on_different_utterances_have_no_difference():
    words, one, other = paired_counts(1, size=3)
    with pytest.raises(ValueError, match="en-1 stands beside en-2"):
        paired_difference(counted(one, words), [counted(other, words)[i] for i in (0, 2, 1)])
    with pytest.raises(ValueError):
        paired_difference(counted(one, words), counted(other[:2], words[:2]))


def test_marked_words_give_back_both_texts_and_the_counts():
    for reference, hypothesis in random_pairs(200, seed=5, shortest=0):
        marked = marked_words(reference, hypothesis)
        assert [ours for _, ours, _ in marked if ours is not None] == reference.split()
        assert [theirs for _, _, theirs in marked if theirs is not None] == hypothesis.split()
        for operation, ours, theirs in marked:
            assert (operation == "equal") == (ours == theirs)
            assert (operation == "insert") == (ours is None)
            assert (operation == "delete") == (theirs is None)
        assert sum(operation != "equal" for operation, _, _ in marked) == word_errors(reference, hypothesis).errors


def test_listing_aligns_the_wrong_utterances_and_totals_all():
    utterances = score(
        ["b", "a", "c"],
        ["en"] * 3,
        ["one two three", "four five", "six"],
        ["one too", "four five", "six seven"],
    )
    assert aligned_listing(utterances) == (
        "2 of 3 utterances have errors: 3 errors in 6 words (substitutions 1, deletions 1, insertions 1)\n"
        "\n"
        "b [en] 2 errors in 3 words (substitutions 1, deletions 1, insertions 0)\n"
        "REF: one two three\n"
        "HYP: one too *****\n"
        "         S   D\n"
        "\n"
        "c [en] 1 errors in 1 words (substitutions 0, deletions 0, insertions 1)\n"
        "REF: six *****\n"
        "HYP: six seven\n"
        "         I\n"
    )


def test_listing_cannot_write_to_the_terminal():
    listing = aligned_listing(score(["a\nb"], ["e\x1bn"], ["one\x1b[2J two"], ["\x07 two"]))
    assert listing.split("\n\n")[1] == (
        "a\\nb [e\\x1bn] 1 errors in 2 words (substitutions 1, deletions 0, insertions 0)\n"
        "REF: one\\x1b[2J two\n"
        "HYP: \\x07       two\n"
        "     S\n"
    )
