import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REST = ("--config", "conf/data/mls.yaml", "--config", "conf/size/tiny.yaml", "--config", "conf/trainer/ddp.yaml")
TINY = ("--config", "conf/finetune.yaml", *REST)


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_run_that_fits_is_told_what_it_takes_and_how_much_more_would(speechllm: Callable, llm_folder: Path) -> None:
    done = speechllm("plan", *TINY, "--model.llm", llm_folder, "--gpu", "A100-40", "--gpus", 8)
    assert done.status == 0
    for part in ("parameters, trained", "parameters, frozen", "weights", "gradients", "optimiser", "activations"):
        assert part in done.out
    assert "it fits" in done.out
    assert re.search(r"hours of audio a day on 8 GPUs", done.out)
    assert float(re.search(r"--data.max_duration (\d+)", done.out)[1]) > 30


def test_a_run_that_does_not_fit_is_told_what_would_help(speechllm: Callable, llm_folder: Path) -> None:
    done = speechllm("plan", *TINY, "--model.llm", llm_folder, "--gpu", "1.51", "--data.max_duration", 600)
    assert done.status == 0
    assert "IT DOES NOT FIT" in done.out
    assert "time is not known" in done.out
    advised = done.out.partition("what to change")[2]
    order = [advised.index(part) for part in ("activation_checkpointing", "max_duration", "stride 3", "nf4", "fsdp")]
    assert order == sorted(order)


def test_stage_1_has_no_llm(speechllm: Callable) -> None:
    done = speechllm("plan", "--config", "conf/pretrain_ctc.yaml", *REST, "--gpu", "A100-40")
    assert done.status == 0
    assert "parameters, frozen: 0.0 M" in done.out


def test_the_papers_llms_are_known_by_name_and_sharded_by_the_trainers_strategy(
    speechllm: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechllm_pl.apps.plan.largest_batch", lambda *_: 0.0)  # takes half a minute at this size
    llm = ("--config", "conf/llm/bloom-560m.yaml", "--gpus", 8)
    strategy = "--trainer.strategy", '{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}'
    whole = speechllm("plan", *TINY, *llm)
    shards = speechllm("plan", *TINY, *llm, *strategy)
    found = [float(re.search(r"weights +([\d.]+) GiB", done.out)[1]) for done in (whole, shards)]
    assert found[0] == pytest.approx(559.2e6 * 2 / 2**30, abs=0.02)  # and a little encoder
    assert found[1] == pytest.approx(found[0] / 8, abs=0.01)
    assert "FSDP" in shards.out


def test_a_jobs_memory_is_printed_alone_for_sbatch(speechllm: Callable) -> None:
    given = ("--config", "conf/pretrain_ctc.yaml", *REST, "--data.num_workers", "auto", "--trainer.devices", 8)
    for cpus, expected in ((4, 4 * 8 + 3 * 8 + 1), (1, 4 * 8 + 1), (16, 4 * 8 + 8 * 8 + 1)):
        done = speechllm("plan", *given, "--host_memory", "--cpus_per_task", cpus)
        assert done.out == f"{expected}G\n"  # and less than a GiB for the tiny model
        assert speechllm("plan", *given, "--host_memory", "--cpus_per_task", cpus, "--evaluation").out == done.out


def test_an_evaluations_memory_is_less_than_that_of_training_on_cpus(speechllm: Callable) -> None:
    of_paper = ("--config", "conf/pretrain_ctc.yaml", *REST[:2], *REST[4:])  # a tiny model's is lost in rounding
    given = (*of_paper, "--trainer.devices", 8, "--trainer.accelerator", "cpu")
    training = speechllm("plan", *given, "--host_memory").out
    evaluation = speechllm("plan", *given, "--host_memory", "--evaluation").out
    assert 8 * 4 < int(evaluation.removesuffix("G\n")) < int(training.removesuffix("G\n"))
    assert "give both" in speechllm("plan", *given, "--evaluation").error()


@pytest.mark.parametrize(("option", "value"), [("--model.llm", "data/later/llm"), ("--trainer.precision", "bf16-true")])
def test_a_job_whose_memory_is_not_known_is_not_stopped(
    speechllm: Callable, llm_folder: Path, option: str, value: str
) -> None:
    done = speechllm("plan", *TINY, "--model.llm", llm_folder, option, value, "--host_memory")
    assert (done.status, done.out) == (0, "")
    (line,) = done.err.splitlines()
    assert "MEM=" in line
    assert value in line
    assert speechllm("plan", *TINY, option, value, "--host_memory", "--model.strid", 3).status == 2


def test_a_model_that_would_not_fit_gathered_is_told_to_be_validated_in_lockstep(
    speechllm: Callable, llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechllm_pl.apps.plan.largest_batch", lambda *_: 0.0)
    fsdp = '{"class_path": "speechllm_pl.training.sharding.ShardedStrategy", "init_args": %s}'
    given = (*TINY, "--model.llm", llm_folder, "--gpus", 16, "--gpu", "A100-40")
    gathered = speechllm("plan", *given, "--trainer.strategy", fsdp % "{}").out
    assert "FSDP over 8 of each node" in gathered
    assert re.search(r"validation +[\d.]+ GiB .* the whole model, gathered", gathered)
    together = speechllm("plan", *given, "--trainer.strategy", fsdp % '{"gather_up_to_gib": 0, "shard_within": "all"}')
    assert "FSDP over 16," in together.out
    assert re.search(r"validation +[\d.]+ GiB .* ranks in lockstep", together.out)


@pytest.mark.parametrize(
    "strategy", ["fsdp", '{"class_path": "speechllm_pl.training.sharding.ShardedStrategy"}'], ids=["name", "class"]
)
def test_what_fit_refuses_is_refused(speechllm: Callable, llm_folder: Path, strategy: str) -> None:
    given = (*TINY, "--model.llm", llm_folder, "--gpus", 8, "--model.quantize", "nf4", "--trainer.strategy", strategy)
    assert "quantize nf4 does not go with FSDP" in speechllm("plan", *given).error()


def test_an_unknown_llm_gpu_or_precision_is_refused_by_name(speechllm: Callable, llm_folder: Path) -> None:
    assert "conf/llm/nothing" in speechllm("plan", *TINY, "--model.llm", "nobody/nothing").error()
    known = (*TINY, "--model.llm", llm_folder)
    assert "A100-40" in speechllm("plan", *known, "--gpu", "K80").error()
    assert "bf16-true" in speechllm("plan", *known, "--trainer.precision", "bf16-true").error()
    assert "Did you mean" in speechllm("plan", *known, "--model.strid", 3).error()
    assert "utilisation" in speechllm("plan", *known, "--utilisation", "much").error()
    assert "more than 0" in speechllm("plan", *known, "--utilisation", 0).error()
    assert "at least 1" in speechllm("plan", *known, "--gpus", 0).error()
