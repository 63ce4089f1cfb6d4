"""`--data.val_max_duration auto`, without the device that it asks for its memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities import rank_zero_only

from speechllm_pl.apps import val_duration
from speechllm_pl.apps.plan import setup_here, setup_of
from speechllm_pl.apps.trainer_cli import fit_configuration
from speechllm_pl.planning.estimate import estimate, needed
from speechllm_pl.planning.step_cost import StepShape, decoding_bytes

ROOT = Path(__file__).parents[2]
LONG = ("--data.max_duration", "60", "--data.max_seconds", "20", "--data.val_max_duration", "auto")


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, small_config: Path) -> Callable[..., Any]:
    """A configuration of `fit`, parsed."""
    monkeypatch.setattr("sys.argv", ["speechllm"])

    def parsed(stage: str, *more: object) -> Any:
        files = [ROOT / "conf" / f"{stage}.yaml", small_config]
        given = [str(part) for file in files for part in ("--config", file)]
        return fit_configuration([*given, *LONG, *map(str, more)])

    return parsed


def test_batches_are_as_long_as_fits_beside_what_training_leaves(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config("pretrain_ctc")
    setup = setup_of(given)
    lasting = estimate(setup).memory.lasting
    sizes = {times: decoding_bytes(setup.blueprint, StepShape.largest(60 * times, 20)) for times in (1, 2, 4, 8)}
    assert sizes[8] > sizes[4] > sizes[2] > sizes[1] > 0
    for most, size in sizes.items():
        for memory, longest in ((needed(lasting + size), most), (needed(lasting + size) - 1, max(1, most // 2))):
            monkeypatch.setattr(val_duration, "total_memory", lambda _, memory=memory: memory)
            assert val_duration.fitting_val_duration(given) == 60 * longest


def test_an_llm_of_unknown_shape_leaves_them_as_in_training(
    config: Callable[..., Any], capsys: pytest.CaptureFixture
) -> None:
    assert val_duration.fitting_val_duration(config("finetune", "--model.llm", "someone/unknown")) == 60
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("data.val_max_duration auto: 60 s of audio a batch, as in training: ")
    assert "someone/unknown" in line


def test_an_llm_whose_code_no_plan_can_run_is_trained_all_the_same(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("aten.nonzero:\nit depends on values")

    monkeypatch.setattr(val_duration, "estimate", refuse)
    assert val_duration.fitting_val_duration(config("pretrain_ctc")) == 60
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("60 s of audio a batch, as in training: aten.nonzero: it depends on values")


def test_what_is_chosen_is_said_by_the_first_rank(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = config("pretrain_ctc")
    for memory, said in ((2**50, "480 s of audio a batch fit"), (1, "60 s of audio a batch, as in training: no more")):
        monkeypatch.setattr(val_duration, "total_memory", lambda _, memory=memory: memory)
        val_duration.fitting_val_duration(given)
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"data.val_max_duration auto: {said}")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    val_duration.fitting_val_duration(given)
    assert not capsys.readouterr().out


def test_whatever_devices_there_are_are_planned_for(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    strategy = '{"class_path": "speechllm_pl.training.sharding.ShardedStrategy"}'
    sharded = ("--trainer.strategy", strategy, "--trainer.num_nodes", 2)
    here = setup_here(config("pretrain_ctc", "--trainer.accelerator", "gpu", "--trainer.devices", "auto", *sharded))
    assert (here.gpus, here.gpus_per_node, here.sharding) == (8, 4, "fsdp")
    assert setup_here(config("pretrain_ctc", "--trainer.accelerator", "gpu", "--trainer.devices", 2)).gpus == 2
    assert setup_here(config("pretrain_ctc", "--trainer.accelerator", "cpu", "--trainer.devices", "auto")).gpus == 1


def test_the_plan_counts_the_length_that_is_given_and_the_weights_that_lora_is_not_merged_into(
    config: Callable[..., Any], llm_folder: Path
) -> None:
    def decoding(*more: object) -> float:
        return estimate(setup_of(config("finetune", "--model.llm", llm_folder, *more))).validation.decoding

    none = ("--model.lora_r", 0)
    # An LLM of two layers, 32 wide, with 4 heads and 2 of keys and values, in float32: q, k, v, o.
    assert decoding() - decoding(*none) >= 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32) * 4
    assert decoding(*none, "--data.val_max_duration", 240) > 3 * decoding(*none)


def test_fit_records_the_number(speechllm, small_config: Path, tmp_path: Path) -> None:
    given = [part for file in (ROOT / "conf" / "pretrain_ctc.yaml", small_config) for part in ("--config", file)]
    done = speechllm("fit", *given, "--trainer.max_steps", 1, "--run", tmp_path)
    assert done.status == 0, done.err
    assert "val_max_duration: 32.0" in (tmp_path / "config.yaml").read_text()
