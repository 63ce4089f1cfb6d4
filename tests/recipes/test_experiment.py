"""The demo is a graph of the commands that its targets run."""

import re
import shlex
from pathlib import Path

import pytest
from commands import lines, value

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_a_clone_without_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are finished are left out of an experiment."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("target", "folder", "data"),
    [
        ("demo", "demo", "spoken_numbers"),
        ("fsdd", "fsdd", "fsdd"),
        ("demo-short", "demo_short", "spoken_numbers_short"),
    ],
)
def test_an_experiment_is_both_stages_scores_transcripts_and_a_report(speechllm, target, folder, data) -> None:
    found = lines(speechllm, target)
    programs = [re.search(r"-m (data_prep\.\w+) |^speechllm (\w+) ", line) for line in found]
    names = [match[1] or match[2] for match in programs if match]
    assert names[1:] == ["data_prep.tokenizer", "fit", "data_prep.tiny_llm", "fit", "evaluate", "transcribe", "report"]
    fits = [shlex.split(line) for line in found if " fit " in line]
    assert [value(words, "--run") for words in fits] == [
        f"runs/{folder}/{stage}" for stage in ("pretrain_ctc", "finetune")
    ]
    assert value(fits[1], "--model.encoder_checkpoint") == f"runs/{folder}/pretrain_ctc/checkpoints/best.ckpt"
    assert value(fits[1], "--model.llm") == f"data/{data}/llm"
    (scores,) = [shlex.split(line) for line in found if " evaluate " in line]
    assert value(scores, "--output") == f"runs/{folder}"
    assert "--devices" not in scores
    assert ("--max_wer" in scores) == (target == "demo-short")


def test_the_split_that_is_chosen_is_scored_and_reported(speechllm) -> None:
    for given, split in (((), "test"), (("--split", "dev"), "dev")):
        found = [shlex.split(line) for line in lines(speechllm, "demo", *given)]
        ends = [words for words in found if words[1] in ("evaluate", "report")]
        assert [value(words, "--cuts") for words in ends] == [f"data/spoken_numbers/{split}.jsonl.gz"] * 2
