"""Data are the same wherever they are, and other data when a duration, a language or a transcript is another."""

from pathlib import Path

import pytest
from lhotse import CutSet
from lhotse.cut import Cut

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.data.identity import difference, identity, refuse_other_data


def identity_of(cuts: list[Cut], path: Path) -> dict:
    CutSet.from_cuts(cuts).to_file(path)
    return identity(read_cuts(path), str(path))


@pytest.mark.parametrize("changed", ["nothing", "order", "duration", "language", "all of a language", "text"])
def test_durations_languages_and_texts_in_their_order_are_what_counts(
    train_cuts: list[Cut], tmp_path: Path, changed: str
) -> None:
    former = identity_of(train_cuts, tmp_path / "former.jsonl")
    if changed == "order":
        train_cuts = train_cuts[::-1]
    if changed == "duration":
        train_cuts[3] = train_cuts[3].truncate(duration=0.2, preserve_id=True)
    if changed == "language":
        assert train_cuts[3].supervisions[0].language == "de"
        train_cuts[3].supervisions[0].language = "en"
    if changed == "all of a language":  # so that languages have the numbers that they had
        for cut in train_cuts:
            cut.supervisions[0].language = cut.supervisions[0].language.replace("en", "fr")
    if changed == "text":
        train_cuts[3].supervisions[0].text += " four"
    ours = identity_of(train_cuts, tmp_path / "ours.jsonl")
    assert (former["digest"] == ours["digest"]) == (changed == "nothing")
    assert (former["utterances"], former["place"]) == (8, str(tmp_path / "former.jsonl"))


def test_sources_are_compared_by_name_and_digest_and_not_by_place() -> None:
    former = {"": {"place": "a", "utterances": 1200, "digest": "1"}}
    moved, other = {"": former[""] | {"place": "b"}}, {"": {"place": "b", "utterances": 7, "digest": "2"}}
    assert difference(former, moved) == ""
    refuse_other_data(former, moved)
    assert difference(former, other) == "a (1,200 utterances) -> b (7 utterances)"
    assert difference(former, former | {"more": former[""]})
    with pytest.raises(
        UserError, match=r"trained on a \(1,200 utterances\), but is now given b \(7 .*--data.other_data"
    ):
        refuse_other_data(former, other)
