"""Write checkpoints while training continues: a thread writes a copy of the state."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, cast

from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions


class BackgroundWriter:
    """Writes in a thread, one at a time. An error there is raised by the next call here."""

    def __init__(self) -> None:
        self._writing: Future[None] | None = None

    def start(self, state: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        """Copy `state` and write the copy, after the previous write has ended, so that there is at most one copy."""
        self.wait()
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing = thread.submit(write, on_cpu(state))
        thread.shutdown(wait=False)  # once this is written

    def check(self) -> None:
        """Raise the error of a write that has failed, without waiting for one in progress."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until nothing is being written.

        Raises:
            TimeoutError: a write has not ended after so many seconds.
        """
        if self._writing is not None:
            if not wait([self._writing], seconds).done:  # an interrupt here forgets nothing
                raise TimeoutError(f"it takes more than {seconds:g} s")
            ended, self._writing = self._writing, None
            ended.result()


def on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    """Copy a state to host memory, of DTensors this rank's shards. Tensors that shared memory do so again."""
    options = StagingOptions(
        use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
    )
    return cast(dict[str, Any], DefaultStager(options).stage(state))
