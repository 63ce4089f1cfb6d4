"""Submission to SLURM: `sbatch` lines whose jobs are the same `speechllm run` as without it."""

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
    """What a job is to have. `gpus` are a node's, as `8` or `a100:8`; `tasks` are a node's where it has none."""

    nodes: int = 1
    gpus: str = "1"
    tasks: int = 1
    cpus: int | None = None
    """Of a task; 8 with a GPU and 1 without when None."""
    jobs: int = 2
    """CPUs of a task that prepares data."""
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    mem: str | None = None
    arguments: tuple[str, ...] = ()
    """Further options of sbatch, which win."""

    @property
    def tasks_per_node(self) -> int:
        """One task a device. Each sees all GPUs of its node, as NCCL needs it (so no --gpus-per-task)."""
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
        """
        Raises:
            UserError: GPUs would be reserved that the trainer does not use.
        """
        if trainer == "cpu" and self.gpus != "0":
            raise UserError(
                f"TRAINER=cpu uses none of the GPUS={self.gpus}: give another TRAINER, or GPUS=0 TASKS=<processes a"
                " node>"
            )

    def sbatch(self, name: str, options: Sequence[str], job: Sequence[str]) -> str:
        """The line for a shell. Later options win: the user's are last.

        Args:
            name: of the job.
            options: of sbatch, that this kind of job wants.
            job: the command and arguments of `speechllm run`.
        """
        chosen = {"partition": self.partition, "account": self.account, "time": self.time, "mem": self.mem}
        own = [f"--{option}={value}" for option, value in chosen.items() if value]
        return shlex.join(["sbatch", f"--job-name={name}", *options, *own, *self.arguments, SCRIPT, *job])

    def training(self, run: str, plan: str, job: Sequence[str]) -> str:
        """One job at a time writes to a run: the name is that of its folder, and a namesake waits (singleton).

        Args:
            run: folder of the run.
            plan: line that prints what the job needs of a node's memory, or nothing where that is not known; it is
                asked unless `mem` says it.
            job: the command and arguments of `speechllm run`.
        """
        options = ["--dependency=singleton", *self.on_devices, BEFORE_THE_LIMIT]
        if self.mem:
            return self.sbatch(run, options, job)
        line = self.sbatch(run, [*options, "MEMORY"], job).replace("MEMORY", "${memory:+--mem=${memory}}", 1)
        of_cluster = ["--trainer.devices", self.tasks_per_node, "--trainer.num_nodes", self.nodes]
        asked = [*of_cluster, "--cpus_per_task", self.cpus_per_task, "--host_memory"]
        return f"memory=$({plan} {shlex.join(map(str, asked))}) && {line}"

    def evaluation(self, job: Sequence[str]) -> str:
        """A job that starts anew when it is requeued, so that no signal ends it before the time limit."""
        return self.sbatch("evaluate", self.on_devices, job)

    def preparation(self, name: str, job: Sequence[str], array: str | None = None, options: Sequence[str] = ()) -> str:
        """A job of one task, or an array of them."""
        tasks = [f"--array={array}", f"--output={LOGS}/%A_%a.out"] if array else []
        return self.sbatch(name, [*options, *tasks, *self.on_cpus, BEFORE_THE_LIMIT], job)

    def parts(self, count: int, part: Sequence[str], join: Sequence[str]) -> str:
        """An array of one job a part, and a job that joins them."""
        array = self.preparation("parts", part, f"1-{count}", ["--parsable"])
        after = ["--dependency=afterok:PARTS", "--kill-on-invalid-dep=yes"]
        joined = self.preparation("join", join, options=after).replace("afterok:PARTS", '"afterok:${parts%;*}"', 1)
        return f"parts=$({array}) && {joined}"
