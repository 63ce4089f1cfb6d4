"""What came in as data never runs: a manifest's commands are refused before anything is opened."""

import copy
import gzip
import json
import pickle
import shlex
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, speak

from data_prep.shar.__main__ import main as packing
from data_prep.shar.export import Settings, export
from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation.noise_and_rooms import recordings_of
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.utterance import read
from speechllm_pl.storage import shar_index as folders


def cuts_of(corpus: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress((corpus / "train.jsonl.gz").read_bytes()).splitlines()]


def written(path: Path, cuts: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(cut)}\n" for cut in cuts))
    return path


def with_source(cut: dict, **source: object) -> dict:
    cut = copy.deepcopy(cut)
    cut["recording"]["sources"][0] |= source
    return cut


def attacks(cut: dict, trace: Path) -> dict[str, dict]:
    """Cuts on reading which Lhotse writes to `trace`, or would open something else than a file."""
    run = f"echo run >> {trace}"
    command = {"type": "command", "channels": [0], "source": run}
    response = copy.deepcopy(cut["recording"]) | {"sources": [command]}
    reverb = {"name": "ReverbWithImpulseResponse", "kwargs": {"rir": response}}
    mixed = {"id": "mixed", "type": "MixedCut", "tracks": [{"cut": cut, "type": "MonoCut", "offset": 0.0}]}
    mixed["tracks"][0]["cut"] = {k: v for k, v in with_source(cut, **command).items() if k != "type"}
    return {
        "command": with_source(cut, **command),
        "pipe": with_source(cut, type="url", source=f"pipe:{run}"),
        "url": with_source(cut, type="url", source="http://127.0.0.1:9/a.wav"),
        "name": with_source(cut, type="file", source=f"x; {run}; .sph"),
        "room": {**cut, "recording": {**cut["recording"], "transforms": [reverb]}},
        "mixed": mixed,
        "custom": {**cut, "custom": {"target": response}},
        "placeholder": with_source(cut, type="shar", source=""),
    }


KINDS = ("command", "pipe", "url", "name", "room", "mixed", "custom", "placeholder")


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_with_a_source_that_is_no_file_is_refused(corpus: Path, tmp_path: Path, kind: str) -> None:
    first, second, third, *_ = cuts_of(corpus)
    bad = attacks(third, tmp_path / "trace")[kind]
    path = written(tmp_path / "bad.jsonl", [first, second, bad])
    with pytest.raises(UserError, match=r"bad\.jsonl, line 3: .*--allow-command-sources"):
        read_cuts(path)
    with pytest.raises(UserError, match=r"line 3: .*data\.allow_command_sources"):
        SpeechDataModule(str(tmp_path), train="bad.jsonl").cuts("train")
    with pytest.raises(UserError, match="line 3"):
        SpeechDataModule(str(tmp_path), dev="bad.jsonl").cuts("dev")
    assert not (tmp_path / "trace").exists()


def test_a_command_in_a_kept_index_is_refused_in_any_process(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("speechllm_pl.data.manifest.LARGE", 0)
    first, second, *_ = cuts_of(corpus)
    path = written(tmp_path / "bad.jsonl", [first, attacks(second, tmp_path / "trace")["command"]])
    allowed = pickle.loads(pickle.dumps(read_cuts(path, allow_commands=True)))
    assert allowed[1].recording.sources[0].type == "command"
    with pytest.raises(UserError, match="line 2: audio from a source of type 'command'"):
        read_cuts(path)
    assert not (tmp_path / "trace").exists()


def test_commands_run_where_they_are_allowed(corpus: Path, tmp_path: Path) -> None:
    (cut, *_) = cuts_of(corpus)
    recorded = cut["recording"]["sources"][0]["source"]
    path = written(tmp_path / "t.jsonl", [with_source(cut, type="command", source=f"cat {shlex.quote(recorded)}")])
    module = SpeechDataModule(str(tmp_path), dev="t.jsonl", allow_command_sources=True)
    for cuts in (read_cuts(path, allow_commands=True), module.cuts("dev")):
        np.testing.assert_array_equal(read(cuts[0]), soundfile.read(recorded, dtype="float32")[0])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "placeholder"])
def test_a_line_in_a_shar_folder_names_the_shards_audio_alone(corpus: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "shar"
    path = written(tmp_path / "one.jsonl", cuts_of(corpus)[:1])
    export(path, folder, Settings("flac", 3))
    lines = folder / folders.cuts_name(0)
    bad = attacks(json.loads(lines.read_text()), tmp_path / "trace")[kind]
    line = (json.dumps(bad) + "\n").encode()
    lines.write_bytes(line)
    places = np.load(folder / folders.INDEX / "joined" / "places.npy")
    audio = read_audio_bytes(folder, places[0])
    places["line_bytes"], places["crc32"] = len(line), zlib.crc32(line, zlib.crc32(audio))
    np.save(folder / folders.INDEX / "joined" / "places.npy", places)
    with pytest.raises(UserError, match=r"cuts\.000000\.jsonl, line 1: audio .*no file|shell would interpret"):
        read_cuts(folder)[0]
    assert not (tmp_path / "trace").exists()


def read_audio_bytes(folder: Path, place: np.void) -> bytes:
    content = (folder / folders.audio_name(0)).read_bytes()
    return content[place["audio_start"] : place["audio_start"] + place["audio_bytes"]]


@pytest.mark.parametrize("kind", KINDS)
def test_packing_into_shar_runs_nothing(corpus: Path, tmp_path: Path, kind: str) -> None:
    first, second, *_ = cuts_of(corpus)
    path = written(tmp_path / "two.jsonl", [first, attacks(second, tmp_path / "trace")[kind]])
    export(path, tmp_path / "shar", Settings("flac", 3))
    (_, rejected) = (tmp_path / "shar" / folders.QUARANTINE).read_text().splitlines()
    assert "source that is no file" in rejected
    assert not (tmp_path / "trace").exists()


def test_packing_into_shar_runs_commands_where_it_is_told_to(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = cuts_of(corpus)
    recorded = second["recording"]["sources"][0]["source"]
    command = with_source(second, type="command", source=f"cat {shlex.quote(recorded)}")
    path, folder = written(tmp_path / "two.jsonl", [first, command]), tmp_path / "shar"
    given = ["shar", "--manifest", path, "--output", folder, "--codec", "flac", "--jobs", 1]
    monkeypatch.setattr(sys, "argv", [*map(str, given)])
    packing()  # which quarantines it; given the option, the same folder is made anew
    assert [cut.id for cut in read_cuts(folder)] == [first["id"]]
    monkeypatch.setattr(sys, "argv", [*map(str, given), "--allow-command-sources"])
    packing()
    np.testing.assert_array_equal(read(read_cuts(folder)[1]), soundfile.read(recorded, dtype="float32")[0])


def test_noise_of_a_command_or_with_a_name_like_one_is_left_out(corpus: Path, tmp_path: Path, caplog) -> None:
    (cut, *_) = cuts_of(corpus)
    trace = tmp_path / "trace"
    good, bad = cut["recording"], attacks(cut, trace)["command"]["recording"]
    path = written(tmp_path / "noise.jsonl", [{**bad, "id": "bad"}, good])
    assert [recording.id for recording in recordings_of(None, str(path), "AddNoise")] == [cut["id"]]
    assert "left out bad, which cannot be read: audio from a source of type 'command'" in caplog.text
    folder = tmp_path / "noise"
    folder.mkdir()
    soundfile.write(folder / "a.wav", speak("one"), RATE)
    (folder / f"x; echo run >> {trace.name}; .sph").write_bytes(b"NIST")
    assert [recording.id for recording in recordings_of(str(folder), None, "AddNoise")] == ["a"]
    assert not trace.exists()
    assert not Path(trace.name).exists()
