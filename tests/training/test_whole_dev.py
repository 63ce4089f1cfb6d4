"""Validations during training see a sample of dev, the end sees all of it; what was printed says which."""

import json
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from command import command, finish

from speechllm_pl.training.stage import Stage

ROOT = Path(__file__).parents[2]
SHORT = ("--data.dev", "train.jsonl.gz", "--trainer.check_val_every_n_epoch", 1, "--model.optimizer.lr", 1e-6)


def fit(small_config: Path, run: Path, *more: object) -> list[Any]:
    files = (ROOT / "conf" / "pretrain_ctc.yaml", ROOT / "conf" / "size" / "tiny.yaml", small_config)
    return ["fit", *(part for file in files for part in ("--config", file)), "--run", run, *SHORT, *more]


def lines(told: Iterable[str], split: str) -> list[str]:
    return [line.removeprefix("INFO: ") for line in told if re.match(rf"(INFO: )?{split}\b", line)]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of what is scored, in turn."""
    ids: list[str] = []
    real = Stage.score_batch
    monkeypatch.setattr(Stage, "score_batch", lambda self, batch: ids.extend(batch.ids) or real(self, batch))
    return ids


def test_validations_have_one_sample_and_the_end_has_all(
    speechllm, small_config: Path, tmp_path: Path, scored: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    done = speechllm(*fit(small_config, tmp_path, "--data.val_utterances", 4))
    assert done.status == 0, done.err
    first, second, whole = scored[:4], scored[4:8], scored[8:]
    assert sorted(first) == sorted(second)
    assert sorted(whole) == [f"train-{number}" for number in range(8)]
    assert sum(int(id_[-1]) % 2 for id_ in first) == 2  # as many of each of the two languages
    told = lines(caplog.messages, "val")
    assert [line.split(", epoch")[0] for line in told] == 2 * ["val (a sample of 4 of 8)"]
    (end,) = lines(caplog.messages, "val_whole")
    assert end.startswith("val_whole (all 8), epoch 2, ctc: WER")
    metrics = json.loads((tmp_path / "finished.json").read_text())["metrics"]
    scored.clear()
    caplog.clear()
    best = (tmp_path / "checkpoints").glob("step=*.ckpt")
    again = speechllm("validate", *fit(small_config, tmp_path)[1:], "--ckpt_path", max(best))
    assert again.status == 0, again.err
    assert sorted(scored) == sorted(whole)
    (line,) = lines(caplog.messages, "val")
    assert line.split("ctc:")[1] == end.split("ctc:")[1]
    assert line.startswith("val (all 8), ")
    wer, cer = (float(rate) / 100 for rate in re.findall(r"([\d.]+) %", end))
    assert metrics["val_whole/ctc_wer"] == metrics["val_whole/wer"] == pytest.approx(wer, abs=1e-4)
    assert metrics["val_whole/ctc_cer/average"] == pytest.approx(cer, abs=1e-4)
    assert {"val/wer", "val_whole/ctc_wer/de", "val_whole/ctc_wer/en"} <= set(metrics)


@pytest.mark.parametrize("utterances", [8, 2000, "null"])
def test_a_small_dev_set_is_whole_in_each_validation_and_not_done_twice(
    speechllm,
    small_config: Path,
    tmp_path: Path,
    scored: list[str],
    utterances: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    done = speechllm(*fit(small_config, tmp_path, "--data.val_utterances", utterances, "--trainer.max_epochs", 1))
    assert done.status == 0, done.err
    assert len(scored) == 8
    assert [line.split(", epoch")[0] for line in lines(caplog.messages, "val")] == ["val (all 8)"]
    assert not lines(caplog.messages, "val_whole")


@pytest.mark.parametrize("end", [(), ("--trainer.max_steps", 8)], ids=["epochs", "steps"])
def test_a_signal_in_the_midst_of_it_stops_and_the_same_command_does_it_anew(
    speechllm, small_config: Path, tmp_path: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch, end: tuple
) -> None:
    given = fit(small_config, tmp_path, "--data.val_utterances", 4, "--data.val_max_duration", 2, *end)
    real = Stage.score_batch

    def interrupted(self: Stage, batch: Any) -> Any:
        if len(scored) >= 8:  # both validations are done
            signal.raise_signal(signal.SIGTERM)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "score_batch", interrupted)
        stopped = speechllm(*given)
    assert stopped.status == 128 + signal.SIGTERM
    assert "stopped by SIGTERM, and saved" in stopped.err
    assert not (tmp_path / "finished.json").exists()
    assert len(scored) < 16
    scored.clear()
    assert speechllm(*given).status == 0
    assert sorted(scored) == [f"train-{number}" for number in range(8)]
    assert "val_whole/wer" in json.loads((tmp_path / "finished.json").read_text())["metrics"]
    scored.clear()
    assert speechllm(*given).status == 0
    assert not scored  # and once is enough


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_ranks_score_all_of_it_together(
    speechllm, small_config: Path, tmp_path: Path, trainer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    more = (*SHORT, "--trainer.max_steps", 2, "--data.val_utterances", 5, "--data.val_max_duration", 3)
    given = command("pretrain_ctc", small_config, tmp_path, *more, trainer=trainer, devices=2)
    (end,) = lines(finish(given, ranks=2).splitlines(), "val_whole")
    (tmp_path / "finished.json").unlink()  # as if that had not been done
    (again,) = lines(finish(given, ranks=2).splitlines(), "val_whole")
    assert again.split("ctc:")[1] == end.split("ctc:")[1]
    last = max((tmp_path / "checkpoints").glob("step=*.ckpt"))
    assert speechllm("validate", *fit(small_config, tmp_path)[1:], "--ckpt_path", last).status == 0
    (line,) = lines(caplog.messages, "val")
    assert line.split("ctc:")[1] == end.split("ctc:")[1]
