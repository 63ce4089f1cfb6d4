"""A checkpoint is written by a thread, from a copy, one at a time, and nothing that goes wrong there is lost."""

import threading
from typing import Any

import pytest
import torch

from speechllm_pl.storage.background import BackgroundWriter

PATIENCE = 20  # seconds, after which something hangs


class Disk:
    """Writes to a list, once it is released; or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.released = threading.Event()
        self.written: list[dict[str, Any]] = []

    def write(self, state: dict[str, Any]) -> None:
        assert self.released.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.written.append(state)


def test_what_is_written_is_what_was_there_when_the_write_began() -> None:
    weights = torch.arange(6.0)
    state = {"whole": weights, "part": weights[2:], "nested": [{"step": torch.tensor(3), "name": "a"}, (1, None)]}
    writer, disk = BackgroundWriter(), Disk()
    writer.start(state, disk.write)
    weights.zero_()
    state["nested"][0]["step"] += 1  # type: ignore[index]
    disk.released.set()
    writer.wait()
    (written,) = disk.written
    assert written["whole"].tolist() == [0, 1, 2, 3, 4, 5]
    assert written["part"].tolist() == [2, 3, 4, 5]
    assert written["nested"] == [{"step": torch.tensor(3), "name": "a"}, (1, None)]
    assert written["part"].untyped_storage().data_ptr() == written["whole"].untyped_storage().data_ptr()


def test_the_next_write_waits_for_the_former_and_only_then_copies() -> None:
    writer, disk, weights = BackgroundWriter(), Disk(), torch.zeros(1)
    writer.start({"weights": weights}, disk.write)
    writer.check()  # waits for nothing
    second = threading.Thread(target=writer.start, args=({"weights": weights}, disk.write), daemon=True)
    second.start()
    second.join(0.1)
    assert second.is_alive()
    weights.fill_(1)
    disk.released.set()
    second.join(PATIENCE)
    writer.wait()
    assert [state["weights"].item() for state in disk.written] == [0, 1]


def test_a_wait_with_an_end_says_so_and_forgets_nothing() -> None:
    writer, disk = BackgroundWriter(), Disk()
    writer.start({}, disk.write)
    with pytest.raises(TimeoutError, match=r"more than 0\.01 s"):
        writer.wait(0.01)
    disk.released.set()
    writer.wait(PATIENCE)
    assert disk.written == [{}]


@pytest.mark.parametrize("call", ["check", "wait", "start"])
def test_an_error_is_raised_once_by_whatever_comes_next(call: str) -> None:
    writer, disk = BackgroundWriter(), Disk(OSError("no space left"))
    disk.released.set()
    writer.start({}, disk.write)
    calls = {"check": lambda: _check_until_done(writer), "wait": writer.wait, "start": lambda: writer.start({}, print)}
    with pytest.raises(OSError, match="no space left"):
        calls[call]()
    writer.check()
    writer.wait()


def _check_until_done(writer: BackgroundWriter) -> None:
    deadline = threading.Event()
    for _ in range(100 * PATIENCE):
        writer.check()
        deadline.wait(0.01)
