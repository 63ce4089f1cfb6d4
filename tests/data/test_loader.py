"""The processes that read ahead: how many there are, what ends them and what does not, what is said of stuck ones."""

import ast
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from conftest import write_cut
from stuck_cut import StuckCut

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches, PlannedBatch
from speechllm_pl.data.loader import Loader, loader, workers_of_rank
from speechllm_pl.data.manifest import read_manifest

TRAINERS = sorted((Path(__file__).parents[2] / "conf" / "trainer").glob("*.yaml"))


def of_corpus(corpus: Path, workers: int, **options) -> Loader:
    cuts = read_manifest(corpus / "train.jsonl.gz")
    return loader(SpeechDataset(cuts), list(EpochBatches(Buckets(cuts.durations, 2.0, 2))) * 3, workers, **options)


# how many


@pytest.mark.parametrize("path", TRAINERS, ids=lambda path: path.stem)
def test_every_shipped_trainer_reads_ahead(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["data"]["num_workers"] == "auto"


@pytest.mark.parametrize(
    ("slurm", "cpus", "ranks", "workers"),
    [
        ({}, 2, 2, 0),  # the demo on two cores
        ({}, 1, 2, 0),
        ({}, 2, 1, 1),
        ({}, 16, 4, 3),
        ({}, 128, 8, 8),
        ({"CPUS_PER_TASK": "8", "NTASKS": "8", "NNODES": "1"}, 64, 8, 7),  # each task is a rank
        ({"CPUS_PER_TASK": "8", "NTASKS": "64", "NNODES": "8"}, 64, 8, 7),
        ({"CPUS_PER_TASK": "1", "NTASKS": "8", "NNODES": "1"}, 64, 8, 0),
        ({"CPUS_PER_TASK": "16", "NTASKS": "1", "NNODES": "1"}, 128, 8, 1),  # salloc -n1 -c16: one task has all ranks
        ({"CPUS_PER_TASK": "32", "NTASKS": "2", "NNODES": "2"}, 128, 8, 3),  # torchrun in a task of each node
        ({"CPUS_PER_TASK": "16", "NTASKS": "8", "STEP_NUM_TASKS": "1", "STEP_NUM_NODES": "1"}, 128, 4, 3),  # srun -n1
        ({"CPUS_PER_TASK": "16"}, 128, 4, 3),
        ({"CPUS_PER_TASK": ""}, 4, 1, 3),
    ],
)
def test_each_cpu_that_does_not_train_reads(
    monkeypatch, slurm: dict[str, str], cpus: int, ranks: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cpus)))
    for name in ("CPUS_PER_TASK", "NTASKS", "NNODES", "STEP_NUM_TASKS", "STEP_NUM_NODES"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert workers_of_rank(ranks) == workers


@pytest.mark.parametrize(
    ("num_workers", "cpus", "said"),
    [
        ("auto", 3, "loader processes that read ahead on each rank: 2 (data.num_workers auto; CPUs for each rank: 3)"),
        ("auto", 1, "each rank reads its own batches (data.num_workers auto; CPUs for each rank: 1)"),
        (1, 3, "loader processes that read ahead on each rank: 1 (data.num_workers 1; CPUs for each rank: 3)"),
        (0, 3, "(data.num_workers 0; CPUs for each rank: 3): there are CPUs for 2, --data.num_workers auto takes them"),
    ],
)
def test_a_run_says_how_many_read_ahead_and_why(corpus, monkeypatch, caplog, num_workers, cpus: int, said: str) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(cpus))
    caplog.set_level("INFO")
    SpeechDataModule(str(corpus), num_workers=num_workers).setup("fit")
    (line,) = caplog.messages
    assert line.endswith(said)


@pytest.mark.parametrize(("num_workers", "cpus", "told"), [("auto", 1, 1), ("auto", 2, 0), (0, 2, 1), (1, 2, 1)])
def test_lightning_asks_for_more_only_where_auto_found_no_cpus_for_any(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, num_workers: object, cpus: int, told: int
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(cpus))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SpeechDataModule(str(corpus), num_workers=num_workers).setup("fit")  # type: ignore[arg-type]
        warnings.warn("The 'train_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1)
    assert len(caught) == told


def test_a_negative_number_is_refused(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"data\.num_workers = -1: give 0 or more, or auto"):
        SpeechDataModule(str(corpus), num_workers=-1)


# how they end


def descendants(process: int) -> set[int]:
    """Processes below a process, from Linux's `/proc`."""
    found: set[int] = set()
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


READS = """
import sys
from pathlib import Path
from test_loader import of_corpus
batches = iter(of_corpus(Path(sys.argv[1]), 2))
for line in sys.stdin:
    print(next(batches).ids, flush=True)
"""


ANOTHERS_SERVER = """
import multiprocessing, os
first = multiprocessing.get_context("forkserver").Process(target=os.getpid)
first.start()
first.join()
"""


@pytest.fixture
def trainer(corpus: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen]:
    """A process that reads with two others, a batch for each line that it is told; parameter: what it does before."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    process = subprocess.Popen(
        [sys.executable, "-c", getattr(request, "param", "") + READS, str(corpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )
    with process:
        yield process
        process.kill()


def batch_of(trainer: subprocess.Popen) -> list[str]:
    assert trainer.stdin is not None
    assert trainer.stdout is not None
    print(file=trainer.stdin, flush=True)
    ids = trainer.stdout.readline()
    assert ids, trainer.stderr and trainer.stderr.read()
    return ast.literal_eval(ids)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_signals_to_the_whole_job_pass_by_but_nothing_outlives_a_trainer_that_is_killed(trainer) -> None:
    """Neither the server nor workers, which are its children."""
    batches = [batch_of(trainer)]
    others = descendants(trainer.pid)
    assert len(others) >= 3
    for process in others:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signum)
    batches += [batch_of(trainer) for _ in range(10)]  # more than had been read before
    assert all(batches)
    trainer.kill()
    deadline = time.monotonic() + 30
    while any(map(alive, others)):
        assert time.monotonic() < deadline, "a process outlived the one it read for"
        time.sleep(0.05)
    assert trainer.stderr.read() == ""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("trainer", [ANOTHERS_SERVER], indirect=True, ids=[""])
def test_signals_pass_by_workers_of_a_server_that_other_code_has_started(trainer) -> None:
    """It lets signals through, and so do threads that libraries have in its processes: workers see to it themselves."""
    assert all(batch_of(trainer) for _ in range(2))  # one of each worker, which has then begun
    workers = {worker for child in descendants(trainer.pid) for worker in descendants(child)}
    assert len(workers) == 2
    for worker in workers:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(worker, signum)
    assert all(batch_of(trainer) for _ in range(10))  # more than had been read before
    assert workers < descendants(trainer.pid)


def test_a_worker_that_is_killed_is_noticed_long_before_the_timeout(corpus: Path) -> None:
    batches = iter(of_corpus(corpus, 1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(batches)


# if no batch comes


def test_a_stuck_process_is_named_with_its_cut_and_file(tmp_path: Path) -> None:
    cuts = [write_cut(tmp_path, f"u{n}", torch.zeros(8000).numpy() + 0.1, "x", "en") for n in range(4)]
    cuts[2] = StuckCut(**vars(cuts[2]))
    plan = [PlannedBatch(torch.tensor([n]).numpy(), seed=n) for n in range(4)]
    batches = iter(loader(SpeechDataset(cast(Any, cuts)), plan, 2, timeout_seconds=2))
    assert [next(batches).ids for _ in range(2)] == [["u0"], ["u1"]]
    file = tmp_path / "u2.wav"
    with pytest.raises(UserError, match=rf"loader process 0 has given no batch for 2 s; it is reading u2 \({file}\)"):
        next(batches)
    workers = multiprocessing.active_children()
    del batches
    for worker in workers:
        worker.join(timeout=30)
        assert not worker.is_alive()


# on its way to a GPU


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_pinned_batches_are_batches(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning is simulated by a copy, which it is."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    pinned = of_corpus(corpus, 2, pin_memory=True)
    empty = PlannedBatch(torch.arange(0).numpy(), seed=0)
    pinned.sampler.append(empty)  # type: ignore[attr-defined]
    batches = list(pinned)
    assert all(isinstance(batch, Batch) for batch in batches)
    alone = [pinned.dataset[planned] for planned in pinned.sampler]  # type: ignore[attr-defined]
    for batch, expected in zip(batches, alone, strict=True):
        assert batch.waveforms.equal(expected.waveforms)
        assert batch[2:] == expected[2:]
    assert batches[-1].ids == []


def test_a_loader_knows_how_long_it_was_waited_for(corpus: Path) -> None:
    alone = of_corpus(corpus, 0)
    began = time.perf_counter()
    for _ in alone:
        time.sleep(0.01)
    elapsed = time.perf_counter() - began
    assert 0 < alone.waited_seconds < elapsed - 0.01 * len(alone)
