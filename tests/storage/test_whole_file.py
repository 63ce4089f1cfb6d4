"""A file is replaced whole, or stays."""

import os
from pathlib import Path

import pytest

from speechllm_pl.storage.whole_file import replace_atomically, write_whole


def test_a_file_appears_with_all_its_content_and_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    with replace_atomically(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    write_whole(path, b"other")
    assert path.read_bytes() == b"other"
    assert os.listdir(path.parent) == ["c.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_former_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(b"former")

    def fail() -> None:
        with replace_atomically(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"former"
    assert os.listdir(tmp_path) == ["c.json"]
