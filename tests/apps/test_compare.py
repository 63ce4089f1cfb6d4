"""`speechllm compare`: one table of scores that evaluations have left."""

import json
from pathlib import Path

import pytest

from speechllm_pl.apps.compare import compare
from speechllm_pl.apps.program_options import CompareOptions
from speechllm_pl.core.errors import UserError


def scored(folder: Path, **wers: float) -> None:
    """Write scores of systems with an interval of 1 % to either side."""
    folder.mkdir(parents=True)
    entries = {
        name: {"average": {"wer": wer, "confidence_interval": [wer - 0.01, wer + 0.01]}} for name, wer in wers.items()
    }
    (folder / "scores.json").write_text(json.dumps(entries))


def test_the_table_has_a_row_for_a_system_and_a_column_for_a_corpus(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "scores"
    scored(folder / "digits" / "ctc", ctc=0.0625)
    scored(folder / "digits" / "lora", ctc=0.5, llm=0.04)
    scored(folder / "numbers" / "lora", ctc=0.5, llm=0.125)
    compare(CompareOptions(scores=str(folder)))
    table = (tmp_path / "scores.md").read_text()
    assert table.splitlines() == [
        "| WER % (95 % interval) | digits | numbers |",
        "| --- | --- | --- |",
        "| ctc | 6.25 (5.2 to 7.2) |  |",
        "| lora | 4.00 (3.0 to 5.0) | 12.50 (11.5 to 13.5) |",
    ]
    assert table in capsys.readouterr().out
    compare(CompareOptions(scores=str(folder), output=str(tmp_path / "other.md")))
    assert (tmp_path / "other.md").read_text() == table


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"ctc": {"average": {"wer": 0.1}}}', '{"ctc": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "digits" / "ctc" / "scores.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError, match=r"digits/ctc/scores\.json holds no scores"):
        compare(CompareOptions(scores=str(tmp_path)))


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no CORPUS/SYSTEM/scores\.json"):
        compare(CompareOptions(scores=str(tmp_path)))
