"""What each loader process is reading, where the process that waits for its batches can see it."""

from torch.utils.data import get_worker_info

from speechllm_pl.data.shared_memory import SharedMemory

NOTE_BYTES = 8192
"""For the name of a cut and the path of its file."""


class Notes:
    """A note for each of a loader's processes, in memory that they share with the one that starts them."""

    def __init__(self, workers: int):
        self._memory = SharedMemory(max(1, workers) * NOTE_BYTES)

    def write(self, worker: int, what: str) -> None:
        start = worker * NOTE_BYTES
        self._memory[start : start + NOTE_BYTES] = what.encode(errors="replace")[:NOTE_BYTES].ljust(NOTE_BYTES, b"\0")

    def read(self, worker: int) -> str:
        start = worker * NOTE_BYTES
        return self._memory[start : start + NOTE_BYTES].rstrip(b"\0").decode(errors="replace")


def reading(what: str) -> None:
    """Note, in a loader's process, what is read from now on; nothing, once the batch is made."""
    worker = get_worker_info()
    notes = getattr(worker.dataset, "notes", None) if worker else None
    if worker and notes:
        notes.write(worker.id, what)
