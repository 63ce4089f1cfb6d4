"""The benchmark of decoders runs on a checkpoint of either stage, and finds greedy's texts with drafts."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from untrained import save

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object) -> str:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["decoding_speed.py", *map(str, arguments)])
    decoding_speed = import_module("decoding_speed")
    decoding_speed.main()
    return capsys.readouterr().out


@pytest.fixture
def runs(ctc_tokenizer: CtcTokenizer, llm_folder: Path, small_encoder: ConformerConfig, tmp_path: Path) -> list[Path]:
    modules = {
        "finetune": LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder),
        "pretrain_ctc": CtcPretraining(ctc_tokenizer, encoder=small_encoder),
    }
    for name, module in modules.items():
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        save(module, tmp_path / name / "checkpoints" / "best.ckpt")
    return [tmp_path / name for name in modules]


def test_all_decoders_are_measured_at_each_size_of_batches(runs, corpus: Path, monkeypatch, capsys) -> None:
    out = printed(
        *(monkeypatch, capsys, *runs, "--cuts", corpus / "train.jsonl.gz", "--batches", 1, 4, "--repetitions", 1)
    )
    finetune, pretrain = out.split(f"{runs[1]}, batches of 1,")
    for size in (1, 4):
        assert f"{runs[0]}, batches of {size}, fp32, 8 utterances" in out
    names = [re.findall(r"^\| ([a-z0-9. -]+) \| [\d.]+ \|", part, flags=re.MULTILINE) for part in (finetune, pretrain)]
    relaxed = ["accept-entropy 0.7", "accept-probability 0.2"]
    assert names[0] == [
        *("greedy", "speculative", "beam", *relaxed, "assisted", "ctc"),
        *("greedy", "speculative", "beam", *relaxed, "ctc"),
    ]
    assert names[1] == ["ctc", "ctc"]
    assert finetune.count("equal to greedy's: 8 of 8 in fp32") == 2
    assert "speculative: batches of 4 have" in out


def test_equal_texts_alone_are_counted_over_all_utterances(runs, corpus: Path, monkeypatch, capsys) -> None:
    out = printed(
        *(monkeypatch, capsys, runs[0], "--cuts", corpus / "train.jsonl.gz", "--batches", 1, 4, "--only-equality")
    )
    assert re.findall(r"batches of (\d+), fp32: texts of speculative equal to greedy's: (.*)", out) == [
        ("1", "8 of 8"),
        ("4", "8 of 8"),
    ]
