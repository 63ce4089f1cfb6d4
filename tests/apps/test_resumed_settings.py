"""What may change when a run goes on is applied, told and kept on record; what may not is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_bad_input import fit

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.storage.checkpoints import newest_complete

ONCE = ("--trainer.max_epochs", 1, "--trainer.check_val_every_n_epoch", 1)
MORE = ("--trainer.max_epochs", 2, "--trainer.check_val_every_n_epoch", 1)


@pytest.fixture
def begun(speechllm, small_config: Path, tmp_path: Path) -> Path:
    """The folder of a run of one epoch."""
    assert speechllm(*fit("pretrain_ctc", small_config, tmp_path / "run", *ONCE)).status == 0
    return tmp_path / "run"


def groups(run: Path) -> list[dict[str, Any]]:
    """The optimiser's settings in the newest state."""
    path = newest_complete(run / "checkpoints")
    assert path is not None
    return torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said to have changed."""
    caplog.set_level("INFO")
    begin = "changed on resuming: "
    return lambda: [record.message.removeprefix(begin) for record in caplog.records if begin in record.message]


def test_the_optimisers_settings_and_the_schedule_may_change(speechllm, small_config: Path, begun: Path, told) -> None:
    former = groups(begun)
    assert {group["initial_lr"] for group in former} != {0.00025}
    changed = ("--model.optimizer.lr", 0.00025, "--model.optimizer.weight_decay", 0.125)
    changed += ("--model.optimizer.betas", "[0.8, 0.9]", "--model.schedule.final_ratio", 0.5)
    done = speechllm(*fit("pretrain_ctc", small_config, begun, *MORE, *changed))
    assert done.status == 0, done.err
    for group in groups(begun):
        assert group["initial_lr"] == 0.00025
        assert group["lr"] == pytest.approx(0.000125)  # the schedule's end
        assert group["weight_decay"] == 0.125
        assert list(group["betas"]) == [0.8, 0.9]
    rate = former[0]["initial_lr"]
    lines = told()
    assert f"optimizer.lr {rate} -> 0.00025" in lines
    assert "optimizer.weight_decay 0.01 -> 0.125" in lines
    assert "model.schedule.final_ratio 0.001 -> 0.5" in lines
    assert "trainer.max_epochs 1 -> 2" in lines
    assert len(lines) == 5, lines


def test_every_earlier_configuration_is_kept(speechllm, small_config: Path, begun: Path, told) -> None:
    assert speechllm(*fit("pretrain_ctc", small_config, begun, *MORE, "--model.optimizer.lr", 0.002)).status == 0
    last = ("--trainer.max_epochs", 3, "--trainer.check_val_every_n_epoch", 1, "--data.max_duration", 3)
    assert speechllm(*fit("pretrain_ctc", small_config, begun, *last)).status == 0
    assert "data.max_duration 4.0 -> 3.0" in told()
    found = [yaml.safe_load((begun / f"config{n}.yaml").read_text()) for n in (".1", ".2", "")]
    assert [each["trainer"]["max_epochs"] for each in found] == [1, 2, 3]
    assert found[1]["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.002
    assert not (begun / "config.3.yaml").exists()


def test_a_run_that_goes_on_as_it_was_says_nothing(speechllm, small_config: Path, tmp_path: Path, told) -> None:
    given = fit("pretrain_ctc", small_config, tmp_path, "--trainer.max_steps", 3, "--last_checkpoints.every_n_steps", 1)
    assert speechllm(*given).status == 0
    path = newest_complete(tmp_path / "checkpoints")
    assert path is not None
    path.unlink()
    done = speechllm(*given)
    assert "resuming" in done.out
    assert told() == []
    assert not (tmp_path / "config.1.yaml").exists()


def test_a_configuration_that_names_no_class_of_encoder_is_no_other(
    speechllm, small_config: Path, begun: Path, told
) -> None:
    former = yaml.safe_load((begun / "config.yaml").read_text())
    encoder = former["model"]["init_args"]["encoder"]
    former["model"]["init_args"]["encoder"] = {**encoder["init_args"], "dropout": 0.25}
    (begun / "config.yaml").write_text(yaml.safe_dump(former))
    assert speechllm(*fit("pretrain_ctc", small_config, begun, *MORE)).status == 0
    assert sorted(told()) == ["model.encoder.dropout 0.25 -> 0.0", "trainer.max_epochs 1 -> 2"]


def test_what_is_refused_leaves_the_record_as_it_was(speechllm, small_config: Path, begun: Path) -> None:
    before = (begun / "config.yaml").read_text()
    done = speechllm(*fit("pretrain_ctc", small_config, begun, *MORE, "--model.encoder.num_blocks", 3))
    assert "num_blocks 2, but this run 3: give it the same" in done.error()
    assert "(RUN=)" in done.error()
    assert (begun / "config.yaml").read_text() == before
    assert not (begun / "config.1.yaml").exists()


def test_what_has_no_effect_any_more_says_so(speechllm, small_config: Path, begun: Path, told) -> None:
    assert speechllm(*fit("pretrain_ctc", small_config, begun, *MORE, "--seed_everything", 7)).status == 0
    assert "seed_everything 1 -> 7 (without effect: it is of a run's beginning)" in told()


def test_other_trained_parts_are_refused(
    speechllm, ctc_tokenizer: CtcTokenizer, small_config: Path, llm_folder: Path, begun: Path, tmp_path: Path
) -> None:
    given = ("--model.llm", llm_folder, "--model.encoder_checkpoint", begun / "checkpoints" / "best.ckpt")
    assert speechllm(*fit("finetune", small_config, tmp_path / "llm", *given, *ONCE)).status == 0
    line = speechllm(*fit("finetune", small_config, tmp_path / "llm", *given, *MORE, "--model.ctc_weight", 0)).error()
    assert "other parts of the model are trained here" in line
    assert "ctc_weight" in line
    assert "(RUN=)" in line
