"""Lock among the processes of a machine, for what one of them makes while the others wait."""

import contextlib
import fcntl
import logging
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)


@contextlib.contextmanager
def machine_lock(path: Path) -> Iterator[str]:
    """Hold the lock of this file, and yield a name for unfinished files that no other holder writes to.

    It is the machine's name, under which the next process finds what a killed one has left. A file system without
    locks, such as some mounts of Lustre, gives each process a name of its own, and none of them waits.

    Raises:
        OSError: the file cannot be written.
    """
    name = socket.gethostname()
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked (%s): processes do not wait for each other here", path, error)
            name = f"{name}-{uuid.uuid4().hex}"
        yield name
