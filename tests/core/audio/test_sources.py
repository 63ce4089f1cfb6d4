"""Sources that are files, and sources that would run."""

import shlex

import pytest

from speechllm_pl.core.audio.sources import runs_in_shell, unsafe_source


def recording(**source: object) -> dict:
    return {"recording": {"sources": [{"type": "file", "channels": [0], "source": "a.wav"} | source]}}


@pytest.mark.parametrize("path", ["a.wav", "größe.flac", "a b; rm -rf.wav", "a.sph", "/x/y-1_2.SPH"])
def test_files_are_safe(path: str) -> None:
    assert unsafe_source(recording(source=path)) == ""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"type": "command", "source": "touch x"}, "audio from a source of type 'command' ('touch x')"),
        ({"type": "url", "source": "pipe:touch x"}, "type 'url'"),
        ({"type": "memory", "source": b"x" * 500}, "..."),
        ({"type": "shar"}, "type 'shar'"),
        ({"type": ["file"]}, "['file']"),
        ({"source": 7}, "audio file 7"),
        ({"source": "a b.sph"}, "a shell would interpret"),
        ({"source": "$(touch x).SPH"}, "a shell would interpret"),
    ],
)
def test_others_are_described_shortly(source: dict, said: str) -> None:
    found = unsafe_source(recording(**source))
    assert said in found
    assert len(found) < 200


def test_the_first_unsafe_source_is_found_however_deep_it_is() -> None:
    item: object = recording(type="command", source="deep")
    for _ in range(5_000):  # deeper than Python recurses
        item = {"tracks": [1, "text", {"custom": item}]}
    assert "'deep'" in unsafe_source(item)


def test_audio_in_a_tar_is_safe_in_a_shar_folder_alone() -> None:
    assert unsafe_source(recording(type="shar", source=""), shar=True) == ""
    assert unsafe_source(recording(type="command"), shar=True)


@pytest.mark.parametrize("name", ["a.sph", "a'b.sph", "a b.sph", "a;b.sph", "-a.sph", "ä.sph", "a$b.wav", "a\nb.SPH"])
def test_only_a_sph_file_whose_name_a_shell_would_read_otherwise_runs(name: str) -> None:
    read_as_it_stands = shlex.split(name) == [name] if "'" not in name else False
    plain = read_as_it_stands and not set(name) & set("$;`&|<>()*?[]~#ä")
    assert runs_in_shell(name) == (name.lower().endswith(".sph") and not plain)
