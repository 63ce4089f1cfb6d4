"""`speechllm compare`: one table of scores that evaluations have left."""

import json
from pathlib import Path

import pytest

from speechllm_pl.apps.compare import compare
from speechllm_pl.apps.program_options import CompareOptions
from speechllm_pl.core.errors import UserError


def scored(folder: Path, utterances: tuple[int, ...] = (4, 6), **wers: float) -> None:
    """Write scores of systems with an interval of 1 % to either side, of so many utterances in each language."""
    folder.mkdir(parents=True)
    languages = {str(number): {"utterances": count} for number, count in enumerate(utterances)}
    entries = {
        name: {"languages": languages, "average": {"wer": wer, "confidence_interval": [wer - 0.01, wer + 0.01]}}
        for name, wer in wers.items()
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
        "| lora, its CTC head | 50.00 (49.0 to 51.0) | 50.00 (49.0 to 51.0) |",
    ]
    assert table in capsys.readouterr().out
    compare(CompareOptions(scores=str(folder), output=str(tmp_path / "other.md")))
    assert (tmp_path / "other.md").read_text() == table


def test_the_ctc_head_that_an_llm_was_scored_beside_has_a_row_of_its_own_not_that_of_stage_1(tmp_path: Path) -> None:
    scored(tmp_path / "scores" / "dev" / "ctc", ctc=0.6)
    scored(tmp_path / "scores" / "dev" / "guarded", ctc=0.5, llm=0.4)
    compare(CompareOptions(scores=str(tmp_path / "scores")))
    rows = [[cell.strip() for cell in row.split("|")] for row in (tmp_path / "scores.md").read_text().splitlines()[2:]]
    rates = {row[1]: float(row[2].split()[0]) for row in rows if len(row) > 2}
    assert rates == {"ctc": 60.0, "guarded": 40.0, "guarded, its CTC head": 50.0}


def test_few_recordings_have_no_interval(tmp_path: Path) -> None:
    scored(tmp_path / "scores" / "talk" / "ctc", (1,), ctc=0.775)
    scored(tmp_path / "scores" / "talk" / "llm", (4, 5), ctc=0.775, llm=0.5)
    compare(CompareOptions(scores=str(tmp_path / "scores")))
    assert (tmp_path / "scores.md").read_text().splitlines()[2:] == [
        "| ctc | 77.50 |",
        "| llm | 50.00 |",
        "| llm, its CTC head | 77.50 |",
    ]


def test_the_table_says_that_dev_has_chosen_the_checkpoints(tmp_path: Path) -> None:
    for corpora, told in ((("test",), False), (("dev", "test"), True)):
        for corpus in corpora:
            scored(tmp_path / str(told) / corpus / "ctc", ctc=0.6)
        compare(CompareOptions(scores=str(tmp_path / str(told))))
        assert ("- dev has also chosen the checkpoints" in (tmp_path / f"{told}.md").read_text()) == told


def test_an_llm_that_was_scored_beside_ctc_has_a_line_below_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "scores"

    def beside_ctc(system: str, change: float, utterances: int = 10, **origins: int) -> None:
        scored(folder / "digits" / system, ctc=0.06, llm=0.04)
        path = folder / "digits" / system / "scores.json"
        entries = json.loads(path.read_text())
        interval = [change - 0.015, change + 0.015]
        found = {"wer_change": change, "confidence_interval": interval, "utterances": utterances}
        entries["llm"] |= {"against_ctc": found, "decoded_by": origins}
        path.write_text(json.dumps(entries))

    beside_ctc("better", -0.02, llm=10)
    beside_ctc("guarded", 0.01, llm=4, ctc=2, silence=1)
    beside_ctc("talk", -0.02, utterances=9, llm=12)
    beside_ctc("worse", 0.02, llm=10)
    compare(CompareOptions(scores=str(folder)))
    assert (tmp_path / "scores.md").read_text().splitlines()[10:] == [
        "",
        "- better on digits, against CTC: -2.00 % (-3.5 to -0.5, significant); 10 texts: 10 llm",
        "- guarded on digits, against CTC: +1.00 % (-0.5 to 2.5, not significant); 7 texts: 2 ctc, 4 llm, 1 silence",
        "- talk on digits, against CTC: -2.00 % (-3.5 to -0.5, too few recordings to tell); 12 texts: 12 llm",
        "- worse on digits, against CTC: +2.00 % (0.5 to 3.5, significant); 10 texts: 10 llm",
    ]


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
