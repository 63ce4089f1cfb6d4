"""Bars are drawn by one process."""

import pytest

from speechllm_pl.core.progress import progress_bar


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
