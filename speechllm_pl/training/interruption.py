"""Runs that survive a stop: the newest states are kept, and after a signal the step is finished and saved first."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from speechllm_pl.core.errors import Stopped, UserError
from speechllm_pl.storage.checkpoint_files import link, remove
from speechllm_pl.storage.checkpoints import (
    BEST,
    Write,
    by_error_rate,
    by_steps,
    mend,
    state_path,
    weights_alone,
    weights_path,
)
from speechllm_pl.training.stage import Stage

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAST_WRITE_SECONDS = 60.0
"""Time limit for the checkpoint that is being written when a rank fails."""

log = logging.getLogger(__name__)


class LastCheckpoints(Checkpoint):
    """Saves the run's state every few minutes, after each validation, before a stop and at the end.

    A run resumes from the newest. None is saved at a step before a validation, which a resumed run would leave out.
    After each validation the weights alone are saved as well; `best.ckpt` is another name of those with the lowest
    word error rate. Within an accumulated step, whose gradients no state holds, the state or a stop waits for its end.
    Training continues while files are written: it waits for the disk only if a save is due before the previous one is
    done, and at the end.

    Args:
        every_minutes: Minutes between two checkpoints, by the first rank's clock.
        every_n_steps: Number of optimiser steps between two checkpoints, in addition to those by the clock.
        keep_newest: Number of newest states that are kept.
        keep_best: Number of weights with the lowest word error rates that are kept (for `speechllm average`).
    """

    def __init__(
        self, every_minutes: float = 15, every_n_steps: int | None = None, keep_newest: int = 5, keep_best: int = 5
    ):
        if keep_newest < 1:
            raise UserError(f"keep_newest {keep_newest}: one at least, or the run cannot be resumed")
        if keep_best < 1:
            raise UserError(f"keep_best {keep_best}: one at least, which is the best")
        self.every_minutes = every_minutes
        self.every_n_steps = every_n_steps
        self.keep_newest = keep_newest
        self.keep_best = keep_best
        self.saved_at = 0
        self.state_due = False
        self.received = 0
        self.requeued = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch the parent before models are built: if the first rank fails, the others would wait for its weights.

        Raises:
            UserError: ranks would resume different states.
        """
        exit_with_parent()
        first = trainer.strategy.broadcast(trainer.ckpt_path)
        if not trainer.strategy.reduce_boolean_decision(first == trainer.ckpt_path):
            raise UserError(
                f"rank 0 resumes {first} and rank {trainer.global_rank} {trainer.ckpt_path}, but all must resume one"
                " state: run the same command again when every node lists the same files (NFS can be a minute behind)"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.folder = Path(trainer.default_root_dir, "checkpoints")
        if trainer.is_global_zero:
            mend(self.folder)
            self._tidy()

    def on_train_start(self, trainer: L.Trainer, pl_module: Stage) -> None:
        """Install the signal handlers only now: Lightning installs its own after `on_fit_start`."""
        self.saved_at, self.saved_time = trainer.global_step, time.monotonic()
        self.module = pl_module
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._receive)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Stage, *_: Any) -> None:
        """Request a save by one rank's clock. All must save after the same step, and agree when losses are pooled."""
        due = time.monotonic() - self.saved_time >= 60 * self.every_minutes
        pl_module.save_due = due and trainer.is_global_zero

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Stage, *_: Any) -> None:
        pl_module.writer.check()
        step = trainer.global_step
        loop = trainer.fit_loop.epoch_loop
        if step == self.saved_at or loop._should_accumulate() or _validation_is_next(trainer):  # see above
            return
        stop = pl_module.agreed.signal
        due = pl_module.agreed.save or (self.every_n_steps is not None and step % self.every_n_steps == 0)
        if stop or due or self.state_due or step == trainer.max_steps:
            self.save(trainer)
        if stop:
            self._stop(trainer, stop)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Requeue the job in mid-validation if the time limit is near; steps since the last save are repeated."""
        if self.received == signal.SIGUSR1 and trainer.state.fn == "fit" and in_slurm() and not self.requeued:
            self.requeued = True
            self.module.writer.wait()
            requeue()

    def on_validation_end(self, trainer: L.Trainer, pl_module: Stage) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        within_step = trainer.fit_loop.epoch_loop._should_accumulate()
        self.save(trainer, float(trainer.callback_metrics["val/wer"]), state=not within_step)
        if pl_module.agreed.signal and not within_step:
            self._stop(trainer, pl_module.agreed.signal)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last state; a run too short for a validation leaves its only state under both names."""
        if trainer.global_step != self.saved_at:
            self.save(trainer)
        self._wait(trainer)
        if trainer.is_global_zero and not (self.folder / BEST).exists():
            link(by_steps(self.folder)[-1], self.folder / BEST)

    def on_exception(self, trainer: L.Trainer, pl_module: Stage, exception: BaseException) -> None:
        """End a failed rank without a clean exit, which could wait for ranks that wait for this one."""
        try:
            pl_module.writer.wait(LAST_WRITE_SECONDS)  # which may itself wait for a rank that is gone
        except Exception as error:  # what ends the run is the other one
            log.warning("the checkpoint that was being written is left unfinished: %s", error)
        finally:
            if trainer.world_size > 1 and not isinstance(exception, Stopped):
                end = threading.Timer(20, _give_up, (trainer.global_rank, exception))  # seconds
                end.daemon = True
                end.start()

    def save(self, trainer: L.Trainer, wer: float | None = None, *, state: bool = True) -> None:
        """Begin to save the state, and the weights that have this word error rate."""
        self.state_due = not state
        if state:
            self.saved_at, self.saved_time = trainer.global_step, time.monotonic()
        weights = None if wer is None else weights_path(self.folder, trainer.global_step, wer)

        def in_background(contents: dict[str, Any], path: Path, write: Write) -> None:
            place, tidy = path if state else None, trainer.is_global_zero
            finish = partial(self._write, path=place, weights=weights, write=write, tidy=tidy)
            self.module.writer.start(contents, finish)

        path = state_path(self.folder, trainer.global_step)
        trainer.save_checkpoint(path, weights_only=False, storage_options=in_background)

    def _write(self, state: dict[str, Any], path: Path | None, weights: Path | None, write: Write, tidy: bool) -> None:
        if weights is not None:  # first: a run that resumes this state does not validate it again
            write(weights_alone(state), weights)
        if path is not None:
            write(state, path)
        if tidy:
            self._tidy()

    def _tidy(self) -> None:
        """Name the best, and remove what is neither among the newest nor among the best."""
        validated = by_error_rate(self.folder)
        if validated:
            link(validated[0], self.folder / BEST)
        for path in (*by_steps(self.folder)[: -self.keep_newest], *validated[self.keep_best :]):
            remove(path)

    def _wait(self, trainer: L.Trainer) -> None:
        """Wait until every rank has written everything: if one ended earlier, srun would kill the others."""
        self.module.writer.wait()
        trainer.strategy.barrier()

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        """Request a stop; on a second signal, end at once."""
        if self.received == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.module.stop_signal = signum
        name = signal.Signals(signum).name
        log.warning("%s: stopping after this step%s", name, " (again: at once)" if signum == signal.SIGINT else "")

    def _stop(self, trainer: L.Trainer, signum: int) -> None:
        self._wait(trainer)
        stop(trainer, signum)


@contextmanager
def noting_signals(stage: Stage) -> Iterator[None]:
    """Context, before training, in which a signal is kept in `stop_signal` for `agreed_signal`."""

    def receive(signum: int, frame: FrameType | None) -> None:
        stage.stop_signal = signum
        log.warning("%s: stopping after this batch", signal.Signals(signum).name)

    heeded = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    former = {signum: signal.signal(signum, receive) for signum in heeded}
    try:
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def agreed_signal(trainer: L.Trainer, stage: Stage) -> int:
    """The largest signal that any rank has received, 0 for none; every rank has to ask."""
    own = torch.tensor(stage.stop_signal, device=stage.device)
    return int(trainer.strategy.reduce(own, reduce_op="max"))


def stop(trainer: L.Trainer, signum: int) -> NoReturn:
    """End the run on every rank, with everything saved, after a signal that all of them know of.

    Raises:
        Stopped: always.
    """
    if signum == signal.SIGUSR1 and in_slurm():
        requeue()
        trainer.strategy.barrier()  # a rank that ended before would have this one killed by srun
    raise Stopped(signum)


def _give_up(rank: int, exception: BaseException) -> None:
    print(f"rank {rank}: {type(exception).__name__}: {exception}", file=sys.stderr, flush=True)
    os._exit(1)


def _validation_is_next(trainer: L.Trainer) -> bool:
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(cast(Any, loop._data_fetcher))


def in_slurm() -> bool:
    """Whether srun has started this process, rather than a person in an interactive job."""
    return SLURMEnvironment.detect()


@rank_zero_only
def requeue() -> None:
    """Put this SLURM job back into the queue; SLURM then ends it, and starts it again with the same run folder."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    rank_zero_info(f"job {job} requeued" if done.returncode == 0 else f"job {job} not requeued: {done.stderr.strip()}")


def exit_with_parent() -> None:
    """End this process together with the one that started it, even when that one is killed.

    A rank left alone would wait in a collective for one that is gone.
    """
    parent = os.getppid()
    if os.environ.get("LOCAL_RANK", "0") == "0" or in_slurm():
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="exit-with-parent").start()
