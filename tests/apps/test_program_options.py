"""Values that options cannot have are refused before anything is loaded, each by name."""

from typing import Any

import pytest

from speechllm_pl.apps import program_options as options
from speechllm_pl.core.errors import UserError


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (options.EvaluateOptions, {"checkpoint": []}, "no checkpoint to evaluate"),
        (options.EvaluateOptions, {"max_unread": 1.5}, "--max_unread 1.5 is a share"),
        (options.EvaluateOptions, {"max_unread": float("nan")}, "--max_unread nan is a share"),
        (options.EvaluateOptions, {"num_workers": -1}, "num_workers -1: give 0 or more, or auto"),
        (options.EvaluateOptions, {"accept_probability": 2.0, "decoder": "speculative"}, "give 0 to 1"),
        (options.EvaluateOptions, {"max_duration": 0.0}, "batches of 0 seconds hold no audio"),
        (options.EvaluateOptions, {"accept_entropy": 0.5, "decoder": "ctc"}, "never asks: give --decoder greedy"),
        (options.EvaluateOptions, {"max_new_tokens": 5, "decoder": "ctc"}, "asks none: give --decoder greedy"),
        (options.EvaluateOptions, {"num_beams": 9}, "no effect on greedy: give --decoder beam"),
        (options.EvaluateOptions, {"ctc_weight": 0.3}, "finds only one: give --decoder beam"),
        (options.EvaluateOptions, {"accept_probability": 0.3}, "no effect on greedy: give --decoder speculative"),
        (options.EvaluateOptions, {"ngram": "5.arpa"}, "no effect on greedy: give --decoder ctc-beam"),
        (
            options.EvaluateOptions,
            {"ngram_weight": 0.7, "decoder": "ctc-beam"},
            "without an n-gram model",
        ),
        (
            options.EvaluateOptions,
            {"ngram": "5.arpa", "ngram_weight": -3.0, "decoder": "ctc-beam"},
            "ngram_weight -3 would prefer",
        ),
        (options.TranscribeOptions, {"max_duration": 9.0, "stream": True}, "leave out --max_duration"),
        (options.TranscribeOptions, {"output_dir": "x", "stream": True}, "leave out --output_dir"),
        (options.TranscribeOptions, {"format": "srt", "stream": True}, "not srt: give one of them as --format"),
        (options.TranscribeOptions, {"files": ["a", "b"], "stream": True}, "not 2: give one"),
        (options.TranscribeOptions, {"files": ["-"]}, "give --stream too"),
        (options.TranscribeOptions, {"files": ["a.wav"], "stream": True, "sample_rate": 8000}, "files have their own"),
        (options.TranscribeOptions, {"files": ["a.wav", "b.wav"], "stream": True}, "one file or standard input"),
        (options.ReportOptions, {"utterances": -1}, "utterances -1: give 0 or more"),
        (options.DataReportOptions, {"sample": 0}, "must be above 0"),
        (options.DataReportOptions, {"player_seconds": 0.0}, "must be above 0"),
        (options.DataReportOptions, {"max_duration": -1.0}, "must be above 0"),
        (options.DataReportOptions, {"worst": -1}, "0 or more"),
        (options.DataReportOptions, {"seed": -1}, "0 or more"),
        (options.AverageOptions, {}, "say which checkpoints"),
        (options.AverageOptions, {"last": 1, "best": 1}, "say which checkpoints"),
        (options.PlanOptions, {"utilisation": 0.0}, "more than 0 and at most 1"),
        (options.PlanOptions, {"utilisation": 1.1}, "more than 0 and at most 1"),
        (options.PlanOptions, {"gpus": 0}, "--gpus 0: give at least 1"),
        (options.PlanOptions, {"gpus_per_node": -3}, "--gpus_per_node -3: give at least 1"),
    ],
)
def test_a_value_that_cannot_be_is_refused(kind: type, given: dict[str, Any], told: str) -> None:
    needed: dict[type, dict[str, Any]] = {
        options.EvaluateOptions: {"checkpoint": "a.ckpt", "cuts": "b.jsonl"},
        options.TranscribeOptions: {"checkpoint": "a.ckpt", "files": ["a.wav"]},
        options.ReportOptions: {"run": "r"},
        options.DataReportOptions: {"root": "r"},
        options.AverageOptions: {"run": "r"},
    }
    with pytest.raises(UserError, match=told):
        kind(**needed.get(kind, {}) | given)


def test_the_smallest_and_largest_values_are_taken() -> None:
    options.EvaluateOptions(checkpoint="a", cuts="b", max_unread=1.0, num_workers=0)
    options.DataReportOptions(root="r", sample=1, worst=0, seed=0, player_seconds=0.1, max_duration=0.1)
    options.PlanOptions(utilisation=1.0, gpus=1, gpus_per_node=1)
    options.ReportOptions(run="r", utterances=0)


def test_one_checkpoint_is_a_list_of_one() -> None:
    assert options.EvaluateOptions(checkpoint="a", cuts="b").checkpoints == ["a"]
    assert options.EvaluateOptions(checkpoint=["a", "b"], cuts="c").checkpoints == ["a", "b"]
