"""Signals, failing ranks and losses that are not finite, in runs of the installed command on two processes."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from command import command, finish, rows, start

from speechllm_pl.storage.checkpoints import by_steps, newest_complete

SHORT = ("--trainer.max_epochs", 99, "--data.max_duration", 1.6, "--trainer.check_val_every_n_epoch", 50)


def arguments(small_config: Path, run: Path, *more: object, steps: int = 12) -> list[str]:
    return command(
        "pretrain_ctc", small_config, run, *SHORT, "--trainer.max_steps", steps, *more, trainer="cpu", devices=2
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_to_one_process_ends_all_after_a_saved_step(small_config: Path, tmp_path: Path, name: str) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(arguments(small_config, run, steps=100_000), log)
    while len(rows(run)) < 3 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, getattr(signal, name))
    assert process.wait(60) == 128 + getattr(signal, name), log.read_text()
    assert f"stopped by {name}, and saved: run the same command again to continue" in log.read_text()
    assert "Traceback" not in log.read_text()
    last = rows(run)[-1]["step"]
    assert rows(run, 1)[-1]["step"] == last
    assert [path.name for path in by_steps(run / "checkpoints")] == [f"step={last:08d}.ckpt"]
    assert not (run / "finished.json").exists()
    again = finish(arguments(small_config, run, steps=last + 2), ranks=2)
    assert again.count(f"resuming {run}/checkpoints/step={last:08d}.ckpt") == 1  # not of every rank
    assert [row["step"] for row in rows(run)] == list(range(1, last + 3))


def test_a_signal_waits_for_all_batches_of_an_accumulated_step(small_config: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    six_an_epoch = ("--data.max_duration", 2.2)
    accumulated = (*SHORT, *six_an_epoch, "--trainer.accumulate_grad_batches", 3)
    process = start(command("pretrain_ctc", small_config, run, *accumulated), log)
    while len(rows(run)) < 7 and process.poll() is None:  # the first of the third step, or one of a later
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM, log.read_text()
    last = rows(run)[-1]["step"]
    (saved,) = by_steps(run / "checkpoints")
    assert saved.name == f"step={last:08d}.ckpt"
    assert [row["step"] for row in rows(run)].count(last) == 3


def test_all_ranks_save_when_the_first_one_s_clock_says_so(small_config: Path, tmp_path: Path) -> None:
    """Steps of ten minutes on the first rank: 15 are over in every third. Sharded, saving needs both ranks."""
    run = tmp_path / "run"
    clocks = ("--trainer.callbacks+=saboteurs.Clocks", "--trainer.callbacks.minutes", "[10,1000]")
    given = (*SHORT, *clocks, "--trainer.max_steps", 10)
    finish(command("pretrain_ctc", small_config, run, *given, trainer="fsdp", devices=2), ranks=2)
    assert [path.name for path in by_steps(run / "checkpoints")] == [f"step={n:08d}.ckpt" for n in (3, 6, 9, 10)]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failing_rank_ends_the_job_with_its_own_message(small_config: Path, tmp_path: Path, rank: int) -> None:
    log = tmp_path / "log"
    fails = ("--trainer.callbacks+=saboteurs.Fails", "--trainer.callbacks.rank", rank, "--trainer.callbacks.step", 3)
    process = start(arguments(small_config, tmp_path / "run", *fails, steps=100_000), log)
    assert process.wait(60 + 60) != 0  # a minute to start, at the very most, and one to end
    text = log.read_text()
    assert f"rank {rank}: Traceback" in text
    assert "RuntimeError: the disk of this rank is on fire" in text
    assert f"rank {1 - rank}: Traceback" not in text


def test_ranks_do_not_wait_for_a_first_one_that_could_not_build_its_model(
    small_config: Path, tmp_path: Path, llm_folder: Path
) -> None:
    log = tmp_path / "log"
    wrong = ("--model.llm", llm_folder, "--model.encoder_checkpoint", tmp_path / "nosuch.ckpt")
    process = start(command("finetune", small_config, tmp_path / "run", *wrong, trainer="ddp", devices=2), log)
    assert process.wait(60) == 2, log.read_text()
    ended = time.monotonic()
    while group_is_there(process.pid) and time.monotonic() - ended < 60:
        time.sleep(0.1)
    assert time.monotonic() - ended < 8  # gloo notices in ten seconds, NCCL in half an hour
    (line,) = [line for line in log.read_text().splitlines() if "error" in line or "rank 1" in line]
    assert "nosuch.ckpt" in line


def group_is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_steps_that_are_not_finite_are_left_out_and_told(small_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    spoils = ("--trainer.callbacks+=saboteurs.Spoils", "--trainer.callbacks.steps", "[3,4]")
    spoils += ("--trainer.callbacks.rank", 1, "--model.max_skipped_steps", 2)
    text = finish(arguments(small_config, run, *spoils, steps=6), ranks=2)
    found = re.findall(r"step (\d+) spoilt (\w+) moved (\w+)", text)
    assert found == [(str(step), str(step in (3, 4)), str(step not in (3, 4))) for step in range(1, 7)]
    for step in (3, 4):
        ids = ", ".join(rows(run, 1)[step - 1]["ids"])
        assert f"step {step} left out, its loss is not finite; cuts on rank 1: {ids}" in text


def test_too_many_of_them_end_the_run_with_the_last_good_checkpoint(small_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    spoils = ("--trainer.callbacks+=saboteurs.Spoils", "--trainer.callbacks.steps", "[3,5,6]")
    limit = ("--model.max_skipped_steps", 2, "--last_checkpoints.every_n_steps", 2)
    limit += ("--trainer.callbacks+=saboteurs.SlowDisk", "--trainer.callbacks.seconds", 1)  # it is still being written
    given = command("pretrain_ctc", small_config, run, *SHORT, "--trainer.max_steps", 12, *spoils, *limit)
    text = finish(given, status=2)
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    last = newest_complete(run / "checkpoints")
    assert last is not None
    assert last.name == "step=00000004.ckpt"
    assert line.startswith("error: 3 steps had a loss or gradient that is not finite, more than max_skipped_steps 2")
    assert line.endswith(f"the last good checkpoint is {last}")
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5]
