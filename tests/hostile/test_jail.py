"""The jail and the judge see what may not be."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import trials
from command import SERVER
from jail import Ended, confined
from trials import Trial, tried

Confined = Callable[[Callable[[], None]], Ended]


def sleeps() -> None:
    subprocess.run(["sleep", "30"], check=True)


def grows() -> None:
    kept = bytearray(300 * 2**20)
    time.sleep(30)
    assert kept


def grows_briefly() -> None:
    bytearray(300 * 2**20)


def fails() -> None:
    raise KeyError("this")


def says() -> None:
    print("said")
    print("why", file=sys.stderr)
    sys.exit(2)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """A process without other threads, as `confined` asks for."""
    with ProcessPoolExecutor(1, mp_context=SERVER) as pool:
        yield pool


@pytest.fixture
def ended(pool: ProcessPoolExecutor, tmp_path: Path) -> Confined:
    return lambda work: pool.submit(confined, work, tmp_path, seconds=1.0, growth=200 * 2**20).result()


def test_what_is_said_and_the_status_are_kept(ended: Confined) -> None:
    found = ended(says)
    assert (found.status, found.out, found.err, found.beyond) == (2, "said\n", "why\n", "")


def test_an_exception_is_a_traceback(ended: Confined) -> None:
    found = ended(fails)
    assert found.status == 1
    assert "Traceback" in found.err
    assert "KeyError: 'this'" in found.err


@pytest.mark.parametrize("work", [sleeps, grows])
def test_what_goes_beyond_a_limit_is_killed_with_all_that_it_started(ended: Confined, work: Callable[[], None]) -> None:
    found = ended(work)
    assert found.status == -signal.SIGKILL
    assert found.beyond == ("it ran for more than 1 s" if work is sleeps else "it took more than 0.195312 GiB")
    assert found.seconds < 20


def test_memory_that_was_given_back_counts_too(ended: Confined) -> None:
    assert ended(grows_briefly).beyond.startswith("it took")


ERROR = "error: {0}: cannot be read: mend it"


@pytest.mark.parametrize(
    ("does", "how"),
    [
        ("sys.exit(0)", "text"),
        (f"sys.exit(print({ERROR!r}.format('a.wav'), file=sys.stderr) or 2)", "refused"),
        (f"sys.exit(print({ERROR!r}.format('file'), file=sys.stderr) or 2)", "unnamed"),
        ("sys.exit(2)", "unexplained"),
        ("sys.exit(3)", "broken"),
        ("os.kill(os.getpid(), 11)", "broken"),
        ("None.lines", "broken"),
        ("print('\\x1b[2J')", "written to the terminal"),
        (f"open({trials.CANARY!r}, 'w')", "executed"),
    ],
)
def test_the_judge_sees_how_it_ended(pool: ProcessPoolExecutor, does: str, how: str) -> None:
    assert pool.submit(tried_doing, does).result() == (how, how in ("text", "refused"))


def tried_doing(does: str) -> tuple[str, bool]:
    """Return how it ended, and whether it may end so."""
    trials.main.main = partial(exec, does, {"sys": sys, "os": sys.modules["os"]})
    result = tried(lambda folder: Trial("made up", "speechllm", ["transcribe"], ("a.wav",), trials.ended_well))
    return result.ended, not result.problem
