from pathlib import Path

from speechllm_pl.storage.folders import audio_files


def test_files_of_every_usual_kind_are_found_in_either_case(tmp_path: Path) -> None:
    names = ("a.wav", "b.FLAC", "c.oga", "d.Opus", "below/e.m4a", "below/f.aif", "g.sph", "h.mp4", "i.aac")
    (tmp_path / "below").mkdir()
    for name in (*names, "notes.txt", "wav", "j.wav.part"):
        (tmp_path / name).touch()
    found = audio_files(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in found.files} == set(names)
    assert not found.skipped
