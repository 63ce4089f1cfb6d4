"""All figures of prepared data together: each part is there, and the sample is what was asked for."""

import json

from prepared_corpus import planted_corpus, write_corpus

from speechllm_pl.analysis.data.survey import survey
from speechllm_pl.analysis.data.suspects import KINDS

PARTS = {
    "absent",
    "sample",
    "amounts",
    "histograms",
    "alphabets",
    "letters",
    "overlaps",
    "levels",
    "suspects",
    "limits",
}


def surveyed(folder, **options):
    return survey(folder, None, seed=2, max_duration=60.0, **{"sample": 1000, "worst": 3, **options})


def test_every_part_is_there_and_is_json(tmp_path):
    data, found = surveyed(write_corpus(tmp_path, planted_corpus()))
    assert PARTS | {"picked", "quarantine"} == set(found)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    assert found["sample"] == {"seed": 2, "asked": 1000, "decoded": 144, "of": len(data)}
    assert set(found["suspects"]) == set(KINDS)
    assert found["absent"] == []


def test_a_smaller_sample_and_fewer_rows_are_taken_and_an_absent_split_is_named(tmp_path):
    folder = write_corpus(tmp_path, planted_corpus())
    (folder / "dev.jsonl.gz").unlink()
    _, found = surveyed(folder, sample=8, worst=1)
    assert found["sample"]["decoded"] == 8
    assert found["absent"] == ["dev"]
    assert all(len(each["worst"]) <= 1 for each in found["suspects"].values())
    assert found["suspects"]["fast"]["count"] == 2  # of the texts all are looked at
