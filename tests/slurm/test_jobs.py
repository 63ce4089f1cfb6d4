"""Jobs of every stage on a real SLURM of one node; a job that is signalled ends as one that was left alone.

Everything goes the user's way: `make slurm-…` in a folder that looks like a clone, GPUS=0 TASKS=2.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lhotse import CutSet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "tests" / "slurm" / "cluster.sh"
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
TWO_TASKS = ("GPUS=0", "TASKS=2", "TRAINER=cpu")
STEPS = 150
LENGTH = f"--trainer.max_steps {STEPS} --trainer.max_epochs -1 --trainer.check_val_every_n_epoch 8"
"""Of a run that can be signalled: an epoch has two or four steps, and the first validation leaves a checkpoint."""


class Job:
    """A submitted job."""

    def __init__(self, number: str, folder: Path):
        self.number = number
        self.log = folder / "runs" / "slurm" / f"{number}.out"

    def field(self, name: str) -> str:
        shown = subprocess.run(["scontrol", "show", "job", self.number], capture_output=True, text=True, check=True)
        return next(part.split("=", 1)[1] for part in shown.stdout.split() if part.startswith(f"{name}="))

    def printed(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_until(self, what: Callable[[], bool], name: str, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not what():
            state = self.field("JobState")
            assert what() or state not in OVER, f"job {self.number} {state} before {name}:\n{self.printed()}"
            assert time.monotonic() < end, f"gave up waiting for job {self.number} until {name}:\n{self.printed()}"
            time.sleep(0.2)

    def wait(self) -> str:
        """Wait until it is over → its last state."""
        self.wait_until(lambda: self.field("JobState") in OVER, "it is over")
        return self.field("JobState")

    def succeed(self) -> "Job":
        assert self.wait() == "COMPLETED", self.printed()
        return self

    def signal(self, name: str = "USR1") -> None:
        """What --signal does before the time limit."""
        subprocess.run(["scancel", f"--signal={name}", self.number], check=True)

    def requeued(self) -> bool:
        return int(self.field("Restarts")) > 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM cluster to which sbatch and the others speak."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        pytest.skip(f"needs a SLURM, and there is no {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("needs root, to start the daemons of a SLURM")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run(["bash", CLUSTER, "start", folder, str(os.getpid())], check=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield
    finally:
        subprocess.run(["bash", CLUSTER, "stop", folder], check=True)


@pytest.fixture(scope="module")
def clone(corpus: Path, tokenizer_file: Path, llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project in it, and the tones prepared as DATA=table."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Makefile", "conf", "data_prep", "speechllm_pl"):
        (folder / name).symlink_to(ROOT / name)
    table = folder / "data" / "table"
    table.mkdir(parents=True)
    for split in ("train", "dev", "test"):  # in the order of their making, for make
        shutil.copyfile(corpus / f"{split}.jsonl.gz", table / f"{split}.jsonl.gz")
    shutil.copyfile(tokenizer_file, table / "tokenizer.model")
    shutil.copytree(llm_folder, table / "llm", copy_function=shutil.copyfile)
    return folder


@pytest.fixture(scope="module")
def submit(cluster: None, clone: Path) -> Callable[..., Job]:
    """`make slurm-TARGET NAME=value …` → the job; with the environment that runs the tests."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def submit(target: str, *given: str) -> Job:
        done = subprocess.run(
            ["make", f"slurm-{target}", "VENV=", *given],
            capture_output=True, text=True, cwd=clone, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return Job(done.stdout.split()[-1], clone)

    return submit


@pytest.fixture(scope="module")
def options(small_config: Path) -> str:
    """ARGS of a job that has time enough to be signalled."""
    return f"--config {small_config} {LENGTH} --trainer.log_every_n_steps 1"


def named_after_its_options(clone: Path, stage: str) -> Path:
    """The run folder of a job that was given ARGS and no RUN."""
    (run,) = (clone / "runs" / stage).glob("table-tiny+*")
    return run


@pytest.fixture(scope="module")
def stage_one(submit: Callable[..., Job], clone: Path, options: str) -> tuple[Job, Path]:
    """An uninterrupted job of stage 1 and its run folder, whose name follows ARGS."""
    job = submit("pretrain-ctc", "DATA=table", *TWO_TASKS, f"ARGS={options}").succeed()
    return job, named_after_its_options(clone, "pretrain_ctc")


@pytest.fixture(scope="module")
def stage_two(submit: Callable[..., Job], clone: Path, stage_one: tuple[Job, Path], options: str) -> tuple[Job, Path]:
    """The same of stage 2, on the encoder of stage 1 that is found by itself."""
    job = submit("finetune", "DATA=table", *TWO_TASKS, f"ARGS={options}").succeed()
    return job, named_after_its_options(clone, "finetune")


def record(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text())


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss as they were logged, one start of the run after another."""
    files = (run / "logs").glob("events.*")  # .<seconds since 1970>.<host>.<process>.<count>
    logged = []
    for file in sorted(files, key=lambda path: (int(path.name.split(".")[3]), path.name)):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            logged += [(event.step, event.value) for event in events.Scalars("train/loss")]
    return logged


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = run / "checkpoints" / f"step={STEPS:08d}.ckpt"
    return torch.load(last, map_location="cpu", weights_only=True)["state_dict"]


def assert_same_result(run: Path, reference: Path) -> None:
    """Bit for bit: the losses, of which none came twice, and the weights."""
    whole, resumed = losses(reference), losses(run)
    assert [step for step, _ in whole] == list(range(STEPS))
    assert len(dict(resumed)) == len(resumed) >= STEPS - 1  # Lightning does not log the step at which it was stopped
    assert set(resumed) <= set(whole)
    ours, theirs = weights(run), weights(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert record(run, "finished.json")["steps"] == record(reference, "finished.json")["steps"] == STEPS


def trains(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.ckpt"))


def interrupt(job: Job, run: Path) -> None:
    """Signal a job in mid-run, see it requeued before it is done, and see it resumed."""
    job.wait_until(lambda: trains(run), "it trains")
    job.signal()
    job.wait_until(job.requeued, "it is requeued")
    assert not (run / "finished.json").exists()
    job.succeed()
    assert job.field("Restarts") == "1"
    first, second = job.printed().split(f"job {job.number} on localhost, start 2")
    assert "resuming" in second
    assert "resuming" not in first


# a sample: a job of each stage, one of them signalled


@pytest.mark.slurm
def test_a_corpus_is_prepared_in_parts_side_by_side(submit: Callable[..., Job], clone: Path) -> None:
    job = submit("prepare", "DATA=spoken_numbers", "HOURS=0.001", "PARTS=en de", "JOBS=1").succeed()
    root = clone / "data" / "spoken_numbers"
    assert (root / "tokenizer.model").is_file()
    assert "tokenizer" in job.printed()
    assert len(list((clone / "runs" / "slurm").glob("*_[12].out"))) == 2
    for split in ("train", "dev", "test"):
        parts = [list(CutSet.from_file(root / "parts" / part / f"{split}.jsonl.gz").ids) for part in ("en", "de")]
        assert all(id_.startswith("en-") for id_ in parts[0])
        assert all(id_.startswith("de-") for id_ in parts[1])
        assert list(CutSet.from_file(root / f"{split}.jsonl.gz").ids) == parts[0] + parts[1]


@pytest.mark.slurm
def test_stage_one_runs_as_two_tasks(stage_one: tuple[Job, Path]) -> None:
    job, run = stage_one
    assert record(run, "environment.json")["processes"] == 2
    assert record(run, "finished.json")["steps"] == STEPS
    assert job.field("JobName") == str(run.relative_to(run.parents[2]))
    assert {line[:3] for line in job.printed().splitlines() if line[1:3] == ": "} == {"0: ", "1: "}


@pytest.mark.slurm
def test_a_signalled_job_is_requeued_and_ends_the_same(
    submit: Callable[..., Job], clone: Path, stage_one: tuple[Job, Path], options: str
) -> None:
    job = submit("pretrain-ctc", "DATA=table", *TWO_TASKS, "RUN=runs/signalled", f"ARGS={options}")
    interrupt(job, clone / "runs" / "signalled")
    assert_same_result(clone / "runs" / "signalled", stage_one[1])


@pytest.mark.slurm
def test_stage_two_runs_as_two_tasks(stage_two: tuple[Job, Path]) -> None:
    assert record(stage_two[1], "environment.json")["processes"] == 2
    assert record(stage_two[1], "finished.json")["steps"] == STEPS


@pytest.mark.slurm
def test_both_stages_are_evaluated_in_a_job(submit: Callable[..., Job], stage_two: tuple[Job, Path]) -> None:
    job = submit("evaluate", "DATA=table", *TWO_TASKS).succeed()
    scores = record(stage_two[1], "scores.json")
    assert {system: entry["devices"] for system, entry in scores.items()} == {"ctc": 2, "llm": 2}
    assert "average" in job.printed()
    assert job.printed().count("real-time factor:") == 1


# the full set


@pytest.mark.long
def test_a_signalled_job_of_stage_two_ends_the_same(
    submit: Callable[..., Job], clone: Path, stage_one: tuple[Job, Path], stage_two: tuple[Job, Path], options: str
) -> None:
    job = submit("finetune", "DATA=table", *TWO_TASKS, "RUN=runs/signalled_llm", f"ARGS={options}")
    interrupt(job, clone / "runs" / "signalled_llm")
    assert_same_result(clone / "runs" / "signalled_llm", stage_two[1])


@pytest.mark.long
def test_the_signal_before_the_time_limit_requeues(submit: Callable[..., Job], clone: Path, options: str) -> None:
    endless = f"{options} --trainer.max_steps -1"
    job = submit("pretrain-ctc", "DATA=table", *TWO_TASKS, "RUN=runs/endless", "TIME=3", f"ARGS={endless}")
    job.wait_until(job.requeued, "its time is nearly over")
    job.wait_until(lambda: "resuming" in job.printed(), "it is resumed")
    subprocess.run(["scancel", job.number], check=True)
    assert job.wait() == "CANCELLED"
    assert "DUE TO TIME LIMIT" not in job.printed()


@pytest.mark.long
def test_a_task_that_dies_ends_the_job(submit: Callable[..., Job], clone: Path, options: str) -> None:
    job = submit("pretrain-ctc", "DATA=table", *TWO_TASKS, "RUN=runs/killed", f"ARGS={options}")
    job.wait_until(lambda: trains(clone / "runs" / "killed"), "it trains")
    listed = subprocess.run(["scontrol", "listpids", job.number], capture_output=True, text=True, check=True).stdout
    (process,) = (
        line.split()[0] for line in listed.splitlines() if line.split()[4] == "1"
    )  # PID JOBID STEPID LOCALID GLOBALID
    os.kill(int(process), signal.SIGKILL)
    assert job.wait() == "FAILED"
    assert "task 1: Killed" in job.printed()
    assert not job.requeued()


@pytest.mark.long
def test_bad_input_fails_without_a_requeue(submit: Callable[..., Job], options: str) -> None:
    given = ("RUN=runs/bad", "MEM=1G", f"ARGS={options} --trainer.max_step 3")  # MEM: the plan would refuse it at once
    job = submit("pretrain-ctc", "DATA=table", *TWO_TASKS, *given)
    assert job.wait() == "FAILED"
    assert "error: " in job.printed()
    assert "Did you mean trainer.max_steps?" in job.printed()
    assert not job.requeued()


@pytest.mark.long
def test_preparation_that_is_signalled_goes_on_where_it_was(submit: Callable[..., Job], clone: Path) -> None:
    given = ("DATA=spoken_numbers", "HOURS=0.2", "LANGUAGES=en", "JOBS=1")
    job = submit("prepare", *given, "ROOT=data/signalled")
    audio = clone / "data" / "signalled" / "audio" / "train"
    job.wait_until(lambda: len(list(audio.glob("*.flac"))) >= 5, "it prepares")
    job.signal()
    job.wait_until(job.requeued, "it is requeued")
    made = {path: path.stat().st_mtime_ns for path in audio.glob("*.flac")}
    job.succeed()
    assert job.field("Restarts") == "1"
    assert {path: path.stat().st_mtime_ns for path in made} == made
    submit("prepare", *given, "ROOT=data/alone").succeed()
    names = [[path.name for path in sorted((clone / "data" / root).rglob("*.flac"))] for root in ("signalled", "alone")]
    assert names[0] == names[1]
    assert len(names[0]) > len(made)
