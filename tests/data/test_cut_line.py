"""Manifests whose values are of wrong types, or impossible: the line is named, and what is wrong with it."""

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.machinery.command_line import Refused
from data_prep.shar.export import Settings, export
from data_prep.tiny_llm.text_pool import read_texts
from data_prep.tokenizer import read_transcripts
from speechllm_pl.core.errors import UserError
from speechllm_pl.data import manifest as module
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.storage import shar_index as shar


def set_to(*places: str | int, to: object) -> Callable[[dict], None]:
    """What puts a value at a place of a cut."""

    def change(cut: dict) -> None:
        *outer, last = places
        inside = cut
        for place in outer:
            inside = inside[place]
        inside[last] = to

    return change


WRONG = {
    "id null": (set_to("id", to=None), "id is null"),
    "id a number": (set_to("id", to=7), "id is 7"),
    "id a list": (set_to("id", to=["a"]), r'id is \["a"\]'),
    "id empty": (set_to("id", to=""), 'id is ""'),
    "id half a pair": (set_to("id", to="a\ud800"), "half of a surrogate pair"),
    "text half a pair": (set_to("supervisions", 0, "text", to="one \udcff two"), "half of a surrogate pair"),
    "text a number": (set_to("supervisions", 0, "text", to=7), "text is 7"),
    "text a list": (set_to("supervisions", 0, "text", to=["one"]), r'text is \["one"\]'),
    "text false": (set_to("supervisions", 0, "text", to=False), "text is false"),
    "language a number": (set_to("supervisions", 0, "language", to=1), "language is 1"),
    "speaker a list": (set_to("supervisions", 0, "speaker", to=[]), r"speaker is \[\]"),
    "start negative": (set_to("start", to=-1.0), "start is -1.0"),
    "start null": (set_to("start", to=None), "start is null"),
    "start NaN": (set_to("start", to=float("nan")), "start is NaN"),
    "duration endless": (set_to("duration", to=1e300), "duration is 1e[+]300"),
    "duration of 400 digits": (set_to("duration", to=10**400), "duration is 1000"),
    "duration true": (set_to("duration", to=True), "duration is true"),
    "rate a text": (set_to("recording", "sampling_rate", to="16000"), 'sampling_rate is "16000"'),
    "rate 0": (set_to("recording", "sampling_rate", to=0), "sampling_rate is 0"),
    "rate false": (set_to("recording", "sampling_rate", to=8000), r"lasts \S+ s, but has \d+ samples at 8000 Hz"),
    "samples of 400 digits": (set_to("recording", "num_samples", to=10**400), "num_samples is 1000"),
    "samples negative": (set_to("recording", "num_samples", to=-5), "num_samples is -5"),
    "recording nameless": (set_to("recording", "id", to=None), "its recording's id is null"),
    "recording endless": (set_to("recording", "duration", to=float("inf")), "its recording's duration is Infinity"),
}


@pytest.fixture
def cuts(corpus: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress((corpus / "train.jsonl.gz").read_bytes()).splitlines()]


@pytest.fixture(params=["small", "large"])
def any_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 0 if request.param == "large" else 2**30)


def with_third(folder: Path, cuts: list[dict], change: Callable[[dict], None]) -> Path:
    """A manifest whose third cut is changed."""
    cuts = copy.deepcopy(cuts)
    change(cuts[2])
    return written(folder, cuts)


def written(folder: Path, cuts: list[dict]) -> Path:
    path = folder / "cuts.jsonl"
    path.write_text("".join(f"{json.dumps(cut)}\n" for cut in cuts))
    return path


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("kind", WRONG)
def test_the_line_of_a_wrong_value_is_named(cuts: list[dict], tmp_path: Path, kind: str) -> None:
    change, said = WRONG[kind]
    with pytest.raises(UserError, match=rf"cuts\.jsonl, line 3: .*{said}.*mend or delete this line"):
        read_cuts(with_third(tmp_path, cuts, change))


@pytest.mark.parametrize("kind", WRONG)
def test_packing_into_shar_quarantines_it(cuts: list[dict], tmp_path: Path, kind: str) -> None:
    change, said = WRONG[kind]
    path = with_third(tmp_path, cuts[:4], change)
    export(path, tmp_path / "shar", Settings("flac", 10))
    assert [cut.id for cut in read_cuts(tmp_path / "shar")] == [cuts[place]["id"] for place in (0, 1, 3)]
    _, row, end = (tmp_path / "shar" / shar.QUARANTINE).read_text().split("\n")
    assert row.split("\t")[1].startswith("wrong field: ")
    assert end == ""
    with pytest.raises(Refused, match=f"wrong field: .*{said}"):
        export(path, tmp_path / "strict", Settings("flac", 10), strict=True)


@pytest.mark.usefixtures("any_size")
def test_a_type_that_is_none_is_named_by_its_line(cuts: list[dict], tmp_path: Path) -> None:
    for change in (set_to("type", to=[]), set_to("recording", "sources", 0, "type", to=[])):
        with pytest.raises(UserError, match=r"cuts\.jsonl, line 3: "):
            read_cuts(with_third(tmp_path, cuts, change))


@pytest.mark.usefixtures("any_size")
def test_values_of_other_types_that_mean_the_same_are_read(cuts: list[dict], tmp_path: Path) -> None:
    for place, change in enumerate(
        (
            set_to("start", to=0),
            set_to("supervisions", 0, "speaker", to=None),
            set_to("supervisions", 0, "text", to="각 \ud83d\ude00 𝄞"),  # Hangul and pairs, as escapes
            set_to("supervisions", 0, "language", to=None),
            set_to("recording", "sampling_rate", to=16000.0),
            set_to("custom", to={"emotion": 1}),
        )
    ):
        change(cuts[place])
    read = read_cuts(written(tmp_path, cuts))
    assert [cut.id for cut in read] == [cut["id"] for cut in cuts]
    assert list(read.texts())[2] == "각 😀 𝄞"


@pytest.mark.usefixtures("any_size")
def test_a_mixed_cuts_tracks_are_looked_at(cuts: list[dict], tmp_path: Path) -> None:
    track = {"type": "MonoCut", "offset": 0.0, "cut": {**cuts[2], "start": -1.0}}
    path = written(tmp_path, [*cuts[:2], {"type": "MixedCut", "id": "mixed", "tracks": [track]}])
    with pytest.raises(UserError, match=r"line 3: in a track start is -1\.0"):
        read_cuts(path)


@pytest.mark.usefixtures("any_size")
def test_the_second_cut_of_an_id_is_named_with_the_first(cuts: list[dict], tmp_path: Path) -> None:
    cuts[6]["id"] = cuts[7]["id"] = cuts[1]["id"]
    cuts[5]["id"] = cuts[4]["id"]
    path = written(tmp_path, cuts)
    with pytest.raises(UserError, match=r"cuts\.jsonl, line 6: has the id of line 5: give every cut an id of its own"):
        read_cuts(path)
    with pytest.raises(UserError, match=r"cuts\.jsonl, line 6: has the id of line 5"):
        export(path, tmp_path / "shar", Settings("flac", 3))
    assert not (tmp_path / "shar").exists()


@pytest.mark.usefixtures("any_size")
def test_bytes_that_are_no_text_are_named_by_their_line(cuts: list[dict], tmp_path: Path) -> None:
    path = written(tmp_path, cuts)
    path.write_bytes(path.read_bytes().replace(cuts[2]["id"].encode(), b"\xff\xfe", 1))
    with pytest.raises(UserError, match=r"cuts\.jsonl, line 3: not a Lhotse cut"):
        read_cuts(path)


@pytest.mark.parametrize("read", [read_transcripts, read_texts])
@pytest.mark.parametrize(
    "kind", ["text half a pair", "text a number", "text a list", "text false", "language a number"]
)
def test_what_is_trained_on_texts_names_the_line_too(
    cuts: list[dict], tmp_path: Path, read: Callable, kind: str
) -> None:
    change, said = WRONG[kind]
    with pytest.raises(UserError, match=rf"cuts\.jsonl, line 3: .*{said}"):
        read([with_third(tmp_path, cuts, change)])
