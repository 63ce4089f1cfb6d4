"""Names of audio files that are made here."""

from pathlib import Path

from data_prep.audio.content_addressed import digest, remove_others


def test_a_digest_changes_with_any_ingredient_and_not_with_their_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert len({digest(of) for of in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1})}) == 4


def test_files_of_other_settings_are_removed_and_those_of_a_user_stay(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    names = ("train/kept-01234567.flac", "train/old-89abcdef.flac", "half-89abcdef.flac.123", "mine.flac", "a-b.flac")
    for name in names:
        (tmp_path / name).touch()
    remove_others(tmp_path, [tmp_path / "train/kept-01234567.flac"])
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.flac*")}
    assert left == {"train/kept-01234567.flac", "mine.flac", "a-b.flac"}
