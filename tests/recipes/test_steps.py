"""Steps are done once, in the order of what they need, and a failure ends them with its status."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechllm_pl.recipes.steps import Step, carry_out, unfinished


def writes(path: Path, *needs: Step, after: tuple[Step, ...] = ()) -> Step:
    return Step(f"echo {path.name} >>{path.parent}/log; touch {path}", path, needs, after)


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def test_what_is_finished_is_left_out(tmp_path: Path) -> None:
    first = writes(tmp_path / "first")
    second = writes(tmp_path / "second", first)
    last = writes(tmp_path / "last", second, after=(first,))
    assert unfinished(last) == [first, second, last]
    carry_out(last)
    assert log(tmp_path) == ["first", "second", "last"]
    assert unfinished(last) == []
    (tmp_path / "last").unlink()
    carry_out(last)
    assert log(tmp_path)[3:] == ["last"]


def test_what_is_older_than_what_it_is_made_of_is_made_anew(tmp_path: Path) -> None:
    source = writes(tmp_path / "source")
    made, beside = writes(tmp_path / "made", source), writes(tmp_path / "beside", after=(source,))
    last = writes(tmp_path / "last", made)
    carry_out(last, beside)
    os.utime(tmp_path / "source", (time.time() + 60, time.time() + 60))
    assert unfinished(last, beside) == [made, last]


def test_steps_run_side_by_side_as_far_as_allowed(tmp_path: Path) -> None:
    met = f"ls {tmp_path}/at-* | wc -l | grep -q 2 && exit"
    meet = f"touch {tmp_path}/at-$$; for i in $(seq 100); do {met}; sleep 0.05; done; exit 1"
    one, other = Step(meet), Step(f"{meet}; true")
    carry_out(Step("true", needs=(one, other)), at_once=2)


def test_a_failure_ends_with_its_status_and_waits_for_the_others(tmp_path: Path) -> None:
    slow = Step(f"sleep 0.5; touch {tmp_path}/slow")
    with pytest.raises(SystemExit) as stop:
        carry_out(Step(f"touch {tmp_path}/never", needs=(Step("exit 3"), slow)), at_once=2)
    assert stop.value.code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slow"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_what_runs(tmp_path: Path, name: str) -> None:
    program = tmp_path / "program.py"  # one that says that it has begun: between two programs a shell goes on
    program.write_text(f"import time; open('{tmp_path}/begun', 'w').close(); time.sleep(60)")
    code = (  # what a background shell starts ignores SIGINT, and so would what this starts
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from speechllm_pl.recipes.steps import Step, carry_out\n"
        f"carry_out(Step('{sys.executable} {program}; touch {tmp_path}/ended'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    began = time.monotonic()
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.terminate()
    assert process.wait() in (130, 143, -signal.SIGINT, 128 + signal.SIGTERM, 1)
    assert time.monotonic() - began < 30
    assert not (tmp_path / "ended").exists()
