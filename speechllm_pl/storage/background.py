"""Checkpoints written while training goes on: a copy of the state is taken at once, and a thread writes that."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, cast

from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions


class BackgroundWriter:
    """One write at a time, in a thread of its own. What goes wrong there is raised here, by the next call."""

    def __init__(self) -> None:
        self._writing: Future[None] | None = None

    def start(self, state: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        """Copy `state` and have the copy written. It waits for the former write, so that there is one copy at most."""
        self.wait()
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing = thread.submit(write, on_cpu(state))
        thread.shutdown(wait=False)  # once this is written

    def check(self) -> None:
        """Raise what went wrong, if a write has ended so. It waits for nothing."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Until nothing is being written.

        Raises:
            TimeoutError: that is not so after so many seconds.
        """
        if self._writing is not None:
            if not wait([self._writing], seconds).done:  # an interrupt here forgets nothing
                raise TimeoutError(f"it takes more than {seconds:g} s")
            ended, self._writing = self._writing, None
            ended.result()


def on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of all of it in host memory; of DTensors this rank's shards. What shared its memory does so again."""
    options = StagingOptions(
        use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
    )
    return cast(dict[str, Any], DefaultStager(options).stage(state))
