"""Lines and rows of a corpus's text files."""

import pytest
from miniature import make_common_voice, make_mls_language, make_voxpopuli, prepare

from data_prep import common_voice, mls, voxpopuli
from data_prep.corpora.lines import BrokenLine, count_lines, text_lines, tsv_rows
from speechllm_pl.core.errors import UserError


def test_a_line_ends_with_a_line_feed_and_with_nothing_else(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffone\u2028a\u0085b\x0bc\r\n\n two \nthree".encode() + b"\n\xff\n")
    (first, *middle, last) = text_lines(path)
    assert first == (f"{path}:1", "one\u2028a\u0085b\x0bc")
    assert middle == [(f"{path}:3", " two "), (f"{path}:4", "three")]
    assert last[0] == f"{path}:5"
    assert isinstance(last[1], BrokenLine)
    assert count_lines(path) == 5


def test_rows_have_the_cells_of_their_columns_and_quotes_are_letters(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('b\ta\n"1\t2\n3\n\t\n4\t5"\n')
    rows = [row if isinstance(row, BrokenLine) else row["a"] + row["b"] for _, row in tsv_rows(path, ["a", "b"])]
    assert rows[0] == '2"1'
    assert "rows.tsv:3: 1 fields where 2" in str(rows[1])
    assert rows[2:] == ['5"4']  # a row of empty cells is an empty line
    with pytest.raises(UserError, match="no column c; columns found: b, a"):
        list(tsv_rows(path, ["a", "c"]))


@pytest.mark.parametrize(
    ("program", "make", "table"),
    [
        (mls, make_mls_language, "dev/transcripts.txt"),
        (common_voice, make_common_voice, "dev.tsv"),
        (voxpopuli, make_voxpopuli, "asr_test.tsv"),
    ],
)
def test_a_missing_table_is_named_with_the_remedy(tmp_path, program, make, table):
    path = make(tmp_path, language="pl") / table
    path.unlink()
    done = prepare(program, tmp_path, tmp_path / "out")
    assert done.status == 2
    assert f"error: {path} is missing: unpack the corpus again" in done.error()
