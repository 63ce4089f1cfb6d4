"""Fields of a cut in JSON."""

import json

import numpy as np
import pytest
from lhotse import MonoCut, Recording, SupervisionSegment

from speechllm_pl.core.cut_fields import agree, refuse_repeated, wrong_field
from speechllm_pl.core.errors import UserError


@pytest.fixture
def cut() -> dict:
    """A cut as Lhotse writes it."""
    recording = Recording("r", [], sampling_rate=16_000, num_samples=32_000, duration=2.0)
    text = SupervisionSegment("s", "r", 0.0, 1.5, text="größe", language="de")
    return json.loads(json.dumps(MonoCut("c", 0.0, 1.5, 0, supervisions=[text], recording=recording).to_dict()))


def test_a_cut_of_lhotse_has_no_wrong_field(cut: dict) -> None:
    assert wrong_field(cut) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": ""}, 'id is "", which is no name'),
        ({"duration": -1}, "duration is -1, which is no number of seconds"),
        ({"start": True}, "start is true, which is no number of seconds"),
        ({"recording": {"id": "r", "duration": 2.0, "sampling_rate": 0}}, "its recording's sampling_rate is 0"),
        ({"supervisions": [{"text": "x" * 99}, {"language": ["x" * 99]}]}, 'language is ["xxx'),
        ({"tracks": [{"cut": {"id": "a"}}, {"cut": {"id": 7}}]}, "in a track id is 7"),
        ({"custom": {"note": "\udcff"}}, "half of a surrogate pair"),
    ],
)
def test_the_first_wrong_field_is_described_shortly(cut: dict, change: dict, said: str) -> None:
    found = wrong_field(cut | change)
    assert said in found
    assert len(found) < 120


@pytest.mark.parametrize("item", [None, [], "cut", 7])
def test_what_is_no_object_is_told(item: object) -> None:
    assert wrong_field(item) == "it is no JSON object"


@pytest.mark.parametrize(("samples", "fits"), [(32_000, True), (33_599, True), (33_700, False), (30_000, False)])
def test_headers_may_be_a_tenth_of_a_second_off(samples: int, fits: bool) -> None:
    assert agree({"num_samples": samples, "sampling_rate": 16_000, "duration": 2.0}) == fits


@pytest.mark.parametrize("seed", range(20))
def test_the_first_line_whose_id_came_before_is_named_with_that_one(seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, 40, 12)
    seen: dict[int, int] = {}
    for line, id_ in enumerate(ids.tolist(), 1):
        if id_ in seen:
            with pytest.raises(UserError, match=rf"^a\.jsonl, line {line}: has the id of line {seen[id_]}: "):
                refuse_repeated(ids, "a.jsonl")
            return
        seen[id_] = line
    refuse_repeated(ids, "a.jsonl")
