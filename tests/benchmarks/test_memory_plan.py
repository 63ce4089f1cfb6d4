"""The estimate against measured memory, in fresh processes: a minute for the tiny one, some minutes for the other."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.long
@pytest.mark.parametrize("name", ["tiny", "1b"])
def test_the_estimate_is_within_15_percent_of_the_measured_peak(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "memory_plan", raising=False)
    from memory_plan import compare

    assert 0.85 < compare(name).ratio < 1.15
