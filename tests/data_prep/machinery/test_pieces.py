"""Pieces of long work: whole or not there, and together the result."""

import gzip
from pathlib import Path

from data_prep.machinery.pieces import compressed, join_files, write_piece


def test_compressed_pieces_one_after_another_are_one_gzip_file(tmp_path: Path) -> None:
    for number, lines in enumerate(([b"a\n", b"b\n"], [], [b"c\n"])):
        write_piece(tmp_path / str(number), {"lines.gz": compressed(lines)})
    with (tmp_path / "all.gz").open("wb") as file:
        join_files([tmp_path / str(number) / "lines.gz" for number in range(3)], file)
    assert gzip.decompress((tmp_path / "all.gz").read_bytes()) == b"a\nb\nc\n"


def test_a_piece_that_is_there_stays_and_nothing_half_written_is_left(tmp_path: Path) -> None:
    write_piece(tmp_path / "piece", {"file": b"first"})
    write_piece(tmp_path / "piece", {"file": b"second"})
    assert (tmp_path / "piece" / "file").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["piece"]
