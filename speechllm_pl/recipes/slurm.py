"""Submission to SLURM: `sbatch` lines whose jobs are the same `speechllm run` as without it."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from speechllm_pl.core.errors import UserError

SCRIPT = "conf/slurm/job.sbatch"
LOGS = "runs/slurm"
BEFORE_THE_LIMIT = "--signal=SIGUSR1@90"
"""Seconds before the time limit in which a step ends and a checkpoint is saved."""


@dataclass(frozen=True)
class Cluster:
    """Resources of a job. Fields' docstrings are the help of `speechllm run`."""

    nodes: int = 1
    """Nodes of a job."""
    gpus: str = "1"
    """GPUs of a node, as 8 or a100:8; 0 for a job on CPUs."""
    tasks: int = 1
    """Tasks of a node without GPUs."""
    cpus: int | None = None
    """CPUs of a task; without it 8 with a GPU and 1 without."""
    jobs: int = 2
    """CPUs of a task that prepares data."""
    partition: str | None = None
    """Partition of SLURM."""
    account: str | None = None
    """Account of SLURM."""
    time: str | None = None
    """Time limit of a job."""
    mem: str | None = None
    """Memory of a node; without it jobs that train or evaluate ask for what the plan says."""
    arguments: tuple[str, ...] = ()
    """Further options of sbatch, which win."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"0|([^:\s]+:)?[1-9]\d*", self.gpus):
            raise UserError(f"GPUS={self.gpus}: give their number on a node, as 8 or with their type, as a100:8")

    @property
    def tasks_per_node(self) -> int:
        """Tasks per node, one per device. Each sees all GPUs of its node, as NCCL requires (no --gpus-per-task)."""
        return self.tasks if self.gpus == "0" else int(self.gpus.rpartition(":")[2])

    @property
    def cpus_per_task(self) -> int:
        return self.cpus or (1 if self.gpus == "0" else 8)

    @property
    def on_devices(self) -> list[str]:
        gpus = [] if self.gpus == "0" else [f"--gpus-per-node={self.gpus}"]
        tasks = [f"--nodes={self.nodes}", f"--ntasks-per-node={self.tasks_per_node}"]
        return [*tasks, *gpus, f"--cpus-per-task={self.cpus_per_task}"]

    @property
    def on_cpus(self) -> list[str]:
        return ["--nodes=1", "--ntasks-per-node=1", f"--cpus-per-task={self.jobs}"]

    def refuse_idle_gpus(self, trainer: str) -> None:
        """Refuse to reserve GPUs that the trainer does not use.

        Raises:
            UserError: the trainer is cpu, and GPUs would be reserved.
        """
        if trainer == "cpu" and self.gpus != "0":
            raise UserError(
                f"TRAINER=cpu uses none of the GPUS={self.gpus}: give another TRAINER, or GPUS=0 TASKS=<processes a"
                " node>"
            )

    def sbatch(self, name: str, options: Sequence[str], job: Sequence[str], expanded: str = "") -> str:
        """Format the `sbatch` line for a shell. Later options win: the user's are last.

        Args:
            name: name of the job.
            options: options of sbatch for this kind of job.
            job: the command and arguments of `speechllm run`.
            expanded: further option, which the shell expands.
        """
        chosen = {"partition": self.partition, "account": self.account, "time": self.time, "mem": self.mem}
        own = [f"--{option}={value}" for option, value in chosen.items() if value]
        start = shlex.join(["sbatch", f"--job-name={name}", *options])
        return " ".join([start, *([expanded] if expanded else []), shlex.join([*own, *self.arguments, SCRIPT, *job])])

    def training(self, run: str, plan: str, job: Sequence[str]) -> str:
        """Format the line for a training job, which waits for any job of its run's name (singleton).

        Args:
            run: folder of the run.
            plan: line that prints the memory that the job needs on a node, or nothing if unknown; used unless `mem`
                is given.
            job: the command and arguments of `speechllm run`.
        """
        return self._planned(run, ["--dependency=singleton", *self.on_devices, BEFORE_THE_LIMIT], job, plan)

    def evaluation(self, plan: str | None, job: Sequence[str]) -> str:
        """Format the line for an evaluation. It starts anew when requeued, so it gets no signal before the limit.

        Args:
            plan: as of `training`, of the training of what is evaluated; None if that is not known here. Where it
                fails the job asks for no memory: a run of an older version can be evaluated, too.
        """
        if plan is None:
            return self.sbatch("evaluate", self.on_devices, job)
        device = ["cpu", "--data.num_workers", "0"] if self.gpus == "0" else ["cuda", "--data.num_workers", "auto"]
        asked = shlex.join(["--evaluation", "--trainer.accelerator", *device])
        return self._planned("evaluate", self.on_devices, job, f"{plan} {asked}", otherwise=" || true")

    def _planned(self, name: str, options: Sequence[str], job: Sequence[str], plan: str, otherwise: str = "") -> str:
        """Format the line for a job that asks for the memory that a plan prints."""
        if self.mem:
            return self.sbatch(name, options, job)
        line = self.sbatch(name, options, job, "${memory:+--mem=${memory}}")
        of_cluster = ["--trainer.devices", self.tasks_per_node, "--trainer.num_nodes", self.nodes]
        asked = [*of_cluster, "--cpus_per_task", self.cpus_per_task, "--host_memory"]
        return f"memory=$({plan} {shlex.join(map(str, asked))}{otherwise}) && {line}"

    def preparation(
        self, name: str, job: Sequence[str], array: str | None = None, options: Sequence[str] = (), expanded: str = ""
    ) -> str:
        """Format the line for a job of one task, or for an array of them."""
        tasks = [f"--array={array}", f"--output={LOGS}/%A_%a.out"] if array else []
        return self.sbatch(name, [*options, *tasks, *self.on_cpus, BEFORE_THE_LIMIT], job, expanded)

    def parts(self, count: int, part: Sequence[str], join: Sequence[str]) -> str:
        """Format the lines for an array of one job per part, and for a job that joins them."""
        array = self.preparation("parts", part, f"1-{count}", ["--parsable"])
        after = '--dependency="afterok:${parts%;*}"'
        joined = self.preparation("join", join, options=["--kill-on-invalid-dep=yes"], expanded=after)
        return f"parts=$({array}) && {joined}"
