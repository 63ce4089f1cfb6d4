"""Bars are drawn by one process."""

import io
import sys

import pytest

from speechllm_pl.storage.progress import print_above, progress_bar


@pytest.mark.parametrize(
    ("variables", "hidden"),
    [({}, False), ({"LOCAL_RANK": "0"}, False), ({"LOCAL_RANK": "1"}, True), ({"SLURM_LOCALID": "3"}, True)],
)
def test_the_first_of_several_processes_has_the_bar(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], hidden: bool
) -> None:
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with progress_bar("counting", 3) as bar:
        assert bar.disable is hidden


def test_a_bar_that_is_not_wanted_is_not_drawn() -> None:
    with progress_bar("", 3, disable=True) as bar:
        assert bar.disable


class Stream(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal


def shown(stream: Stream) -> list[str]:
    """What stands in a terminal's lines: a carriage return begins the line again, over what was there."""
    rows = []
    for line in stream.getvalue().split("\n"):
        row = ""
        for part in line.split("\r"):
            row = part + row[len(part) :]
        rows.append(row.rstrip())
    return rows


def test_a_line_stands_above_the_bar_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Stream(is_terminal=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("counting", 3) as bar:
        print_above("one")
        print_above("two", sys.stderr)
        bar.update(3)
    first, second, drawn, after = shown(terminal)
    assert (first, second, after) == ("one", "two", "")
    assert drawn.startswith("counting: 100%")


def test_in_a_log_each_state_of_the_bar_and_each_other_line_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Stream(is_terminal=False)
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar("counting", 3) as bar:
        print_above("one", sys.stderr)
        bar.update(3)
    begin, line, end, after = log.getvalue().split("\n")
    assert begin.startswith("counting:   0%")
    assert line == "one"
    assert end.startswith("counting: 100%")
    assert after == ""
    assert "\r" not in log.getvalue()
