"""Rows of tables: the same from TSV, CSV and JSONL."""

from pathlib import Path

import pytest

from data_prep.corpora.lines import BrokenLine
from data_prep.corpora.table_rows import read_table
from speechllm_pl.core.errors import UserError

TABLES = {
    "mine.tsv": "Audio\tSentence\tnote\tlang\na.wav\tone\tx\ten\nb.wav\ttwo\n",
    "mine.csv": 'Audio,Sentence,note,lang\na.wav,one,"x",en\nb.wav,two\n',
    "mine.jsonl": '{"Audio": "a.wav", "Sentence": "one", "note": ["x"], "lang": "en"}\n{"Audio": ["b.wav"]}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_columns_are_found_by_name_and_a_broken_line_stands_in_its_place(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TABLES[name])
    row, broken = read_table(tmp_path / name)
    assert row == {"path": "a.wav", "text": "one", "language": "en"}
    assert isinstance(broken, BrokenLine)
    assert f"{name}:{2 if name.endswith('jsonl') else 3}" in str(broken)


def test_two_columns_for_one_thing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("id\ttext\tsentence\na\tone\ttwo\n")
    with pytest.raises(UserError, match="more than one column for text"):
        list(read_table(tmp_path / "mine.tsv"))
