"""Processes that share an evaluation over gloo write what one process writes, and end together when one fails."""

import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lhotse import CutSet
from ranks import in_ranks
from untrained import save

from speechllm_pl.apps import evaluate, main, ranks
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.storage.checkpoints import RECORD
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning

OWN = {"real_time_factor", "rtfx", "devices", "command"}
"""Of scores.json what may differ."""


class Ended(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def checkpoints(
    ctc_tokenizer: CtcTokenizer,
    llm_folder: Path,
    small_encoder: ConformerConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Checkpoints of both stages, as if trained in bf16."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = [
        save(CtcPretraining(ctc_tokenizer, encoder=small_encoder), folder / "ctc.ckpt"),
        save(LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder), folder / "llm.ckpt"),
    ]
    for path in paths:
        checkpoint = torch.load(path, weights_only=True)
        checkpoint[RECORD]["precision"] = "bf16-mixed"
        torch.save(checkpoint, path)
    return f"[{','.join(map(str, paths))}]"


@pytest.fixture
def cuts(corpus: Path, tmp_path: Path) -> Path:
    """Manifest of eight utterances, two of which cannot be read."""
    found = list(CutSet.from_file(corpus / "train.jsonl.gz"))
    for cut in (found[1], found[6]):
        cut.recording.sources[0].source = str(tmp_path / "gone.wav")  # type: ignore[reportOptionalMemberAccess]
    CutSet.from_cuts(found).to_file(tmp_path / "cuts.jsonl")
    return tmp_path / "cuts.jsonl"


def of_torchrun(rank: int) -> dict[str, object]:
    """Variables that torchrun sets for each of two processes."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    return {**ranks, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "x"}


def of_srun(rank: int) -> dict[str, object]:
    """Variables that srun sets for each of two tasks on one node."""
    job = {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_NNODES": 1}
    step = {"SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_NUM_NODES": 1}
    return {**job, **step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0}


def together(
    folder: Path,
    *arguments: object,
    told: Callable[[int], dict[str, object]] = of_torchrun,
    prepare: Callable[[int], None] = lambda rank: None,
) -> list[Ended]:
    """Two processes, forked from this one, which has imported everything.

    Args:
        told: rank → variables of its environment.
        prepare: called with the rank in each.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **told(number)}
        os.environ |= {name: str(value) for name, value in variables.items()}
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name}-{number}", os.O_CREAT | os.O_WRONLY), stream)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
        sys.argv = ["speechllm", *map(str, arguments)]
        prepare(number)
        main.main()

    processes = [multiprocessing.get_context("fork").Process(target=rank, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [
        Ended(process.exitcode or 0, *((folder / f"{name}-{number}").read_text() for name in ("out", "err")))
        for number, process in enumerate(processes)
    ]


def results(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """scores.json, and what the other files hold, but for times."""
    others = {path.name: path.read_text() for path in folder.glob("*.*") if path.name != "scores.json"}
    others["manifest.jsonl"] = re.sub(r'"time": [0-9.e-]+', '"time": 0', others["manifest.jsonl"])
    return json.loads((folder / "scores.json").read_text()), others


@pytest.mark.long
def test_processes_that_the_command_starts_by_itself_write_the_same_and_end_with_the_first_that_fails(
    speechllm, checkpoints: str, cuts: Path, tmp_path: Path
) -> None:
    given = ["evaluate", "--checkpoint", checkpoints, "--cuts", cuts, "--max_duration", 2.2, "--device", "cpu"]
    assert speechllm(*given, "--output", tmp_path / "one").status == 0
    command = [str(Path(sys.executable).with_name("speechllm")), *map(str, given), "--devices", "2"]
    subprocess.run([*command, "--output", tmp_path / "two"], check=True, capture_output=True)
    (alone, files), (shared, same_files) = results(tmp_path / "one"), results(tmp_path / "two")
    assert same_files == files
    assert without(shared, OWN) == without(alone, OWN)
    command[command.index(str(checkpoints))] = str(tmp_path / "none.ckpt")
    failed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2
    assert failed.stderr.count("error: ") == 1
    assert "none.ckpt does not exist" in failed.stderr


def without(scores: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {system: {k: v for k, v in entry.items() if k not in names} for system, entry in scores.items()}


@pytest.mark.parametrize("told", [of_torchrun, of_srun])
def test_two_processes_write_what_one_writes(speechllm, checkpoints: str, cuts: Path, tmp_path: Path, told) -> None:
    given = ["evaluate", "--checkpoint", checkpoints, "--cuts", cuts, "--max_duration", 2.2, "--device", "cpu"]
    (tmp_path / "log").mkdir()
    assert speechllm(*given, "--output", tmp_path / "one").status == 0
    first, second = together(tmp_path / "log", *given, "--output", tmp_path / "two", told=told)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    (alone, files), (shared, same_files) = results(tmp_path / "one"), results(tmp_path / "two")
    assert same_files == files
    assert set(files) == {"hypotheses.jsonl", "manifest.jsonl", "alignments-ctc.txt", "alignments-llm.txt"}
    assert without(shared, OWN) == without(alone, OWN)
    assert list(shared) == ["ctc", "llm"]
    for system in ("ctc", "llm"):
        assert (alone[system]["devices"], shared[system]["devices"]) == (1, 2)
        assert shared[system]["precision"] == "bf16-mixed"
        assert shared[system]["device"] == "cpu"
        assert len(shared[system]["unreadable"]) == 2
    assert "average" in first.out
    assert second.out == ""


def test_a_rank_that_fails_says_so_and_ends_the_other(checkpoints: str, cuts: Path, tmp_path: Path) -> None:
    def fail_on_the_second(rank: int) -> None:
        def broken(*_: object, **__: object) -> None:
            raise UserError("the disk is gone: bring it back")

        main.time.sleep = lambda _: None  # in which a launcher would end the other
        if rank:
            evaluate.recognize = broken  # type: ignore[reportAttributeAccessIssue]

    given = ["evaluate", "--checkpoint", checkpoints, "--cuts", cuts, "--output", tmp_path, "--device", "cpu"]
    first, second = together(tmp_path, *given, prepare=fail_on_the_second)
    assert (first.status, second.status) == (1, 2)
    assert "error: rank 1: the disk is gone: bring it back" in second.err
    assert "rank 0: perhaps another rank is gone" in first.err
    assert "error:" not in first.err
    assert not (tmp_path / "scores.json").exists()


def test_what_no_rank_can_use_is_told_once(cuts: Path, tmp_path: Path) -> None:
    def hurry(_: int) -> None:
        main.time.sleep = lambda _: None

    given = ["evaluate", "--checkpoint", tmp_path / "none.ckpt", "--cuts", cuts, "--device", "cpu"]
    first, second = together(tmp_path, *given, prepare=hurry)
    assert f"error: rank 0: checkpoint {tmp_path / 'none.ckpt'} does not exist" in first.err
    assert "error:" not in second.err
    assert (first.status, second.status) == (2, 1)


def _loading(rank: int, ranks_of_all: int, folder: Path) -> None:
    """Two machines of two ranks each."""
    told = folder / "told"

    def make() -> int:
        with told.open("a") as file:
            file.write(f"{rank} begins\n")
        time.sleep(0.2)  # in which others would begin
        with told.open("a") as file:
            file.write(f"{rank} ends\n")
        return rank

    assert ranks.Rank(rank, ranks_of_all, 2, "cpu", rank % 2).after_the_first(make) == rank


def test_no_two_ranks_of_a_machine_load_at_once_and_the_first_is_alone(tmp_path: Path) -> None:
    in_ranks(_loading, 4, tmp_path, tmp_path)
    lines = (tmp_path / "told").read_text().splitlines()
    assert lines[:2] == ["0 begins", "0 ends"]
    assert sorted(lines) == sorted(f"{rank} {what}" for rank in range(4) for what in ("begins", "ends"))
    for machine in (("0", "1"), ("2", "3")):
        own = [line for line in lines if line[0] in machine]
        assert [line.split()[1] for line in own] == ["begins", "ends"] * 2


# who has started the processes


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
SRUN = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "4"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TORCHRUN, (4, 2)),
        (SRUN, (2, 4)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, (1, 1)),
        ({"SLURM_NTASKS": "8"}, None),  # a job's script, not under srun
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, None),
        ({}, None),
    ],
)
def test_what_torchrun_or_srun_has_started_is_found(monkeypatch: pytest.MonkeyPatch, variables, expected) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    started = ranks._started()
    assert (started and (started.here, started.nodes)) == expected


@pytest.mark.parametrize(("cpus", "threads", "expected"), [(2, 1, 2), (2, 2, 1), (64, 1, 8), (64, 16, 4), (1, 2, 1)])
def test_auto_is_every_gpu_or_what_the_cpus_have_room_for(
    monkeypatch: pytest.MonkeyPatch, cpus: int, threads: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert ranks._count("cpu", "auto") == expected
    assert ranks._count("cuda", "auto") == 5
    assert ranks._count("cuda:3", "auto") == 1
    assert ranks._count("cpu", 3) == 3


@pytest.mark.parametrize("started", [of_torchrun, of_srun])
def test_another_number_of_devices_than_was_started_is_refused(
    started: Callable[[int], dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in started(0).items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="devices 4, but 2 processes were started"), ranks.ranks("cpu", 4):
        pass
