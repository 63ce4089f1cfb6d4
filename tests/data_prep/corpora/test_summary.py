"""Counts and durations of what was kept."""

from data_prep.corpora.summary import Summary


def kept(*rows: tuple[str, str, int, float]) -> Summary:
    summary = Summary()
    for split, language, count, seconds in rows:
        summary.utterances[split, language] += count
        summary.seconds[split, language] += seconds
    return summary


def test_what_one_summary_holds_another_can_add() -> None:
    one, other = kept(("train", "de", 3, 2.5), ("dev", "de", 1, 1.0)), kept(("train", "de", 2, 1.5))
    one.rejected["silent"], other.rejected["silent"] = 1, 2
    one.add_json(other.to_json())
    assert one.utterances == {("train", "de"): 5, ("dev", "de"): 1}
    assert one.seconds == {("train", "de"): 4.0, ("dev", "de"): 1.0}
    assert one.rejected == {"silent": 3}


def test_splits_come_in_their_order_each_followed_by_its_subsets() -> None:
    summary = kept(*((split, "en", 1, 1.0) for split in ("test-other", "test", "dev", "test-clean", "train")))
    splits = [line.split()[0] for line in summary.table().splitlines()[1:-1]]
    assert splits == ["train", "dev", "test", "test-clean", "test-other"]


def test_languages_that_train_lacks_are_strangers() -> None:
    assert kept(("train", "en", 1, 1.0), ("dev", "de", 1, 1.0), ("test", "en", 1, 1.0)).strangers() == ["de"]
    assert kept(("dev", "de", 1, 1.0)).strangers() == []
