"""A run that waits for its data is told what to do, once."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.training.speed import JUDGED, WARM_UP, Speed


def advice(corpus: Path, steps: list[tuple[float, float]], recwarn: pytest.WarningsRecorder) -> list[str]:
    """What is said after steps of so many seconds, the first of which were waited."""
    trainer = SimpleNamespace(datamodule=SpeechDataModule(str(corpus), num_workers=1))
    speed = Speed()
    for waited, elapsed in steps:
        speed._judge(trainer, waited, elapsed)  # type: ignore[arg-type]
    return [str(warning.message) for warning in recwarn.list]


def test_who_waits_longer_than_five_percent_is_told_the_share_and_the_remedies(corpus, monkeypatch, recwarn) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    (told,) = advice(corpus, [(0.12, 1.0)] * (WARM_UP + 5 * JUDGED), recwarn)
    assert told.startswith(
        "training waits for data 12% of the time of the first rank: try --data.num_workers 7 instead of 1,"
    )
    assert "CPUS=" in told
    assert "make shar" in told


def test_who_has_no_more_cpus_is_told_to_ask_for_some(corpus, monkeypatch, recwarn) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    (told,) = advice(corpus, [(0.12, 1.0)] * (WARM_UP + JUDGED), recwarn)
    assert "try more CPUs for each rank (CPUS=" in told


@pytest.mark.parametrize(
    "steps",
    [
        [(0.04, 1.0)] * 5 * JUDGED,
        [(1.0, 1.0)] * WARM_UP + [(0.0, 1.0)] * JUDGED,  # the start is slow
        ([(1.0, 1.0)] * 5 + [(0.0, 1.0)] * (JUDGED - 5)) * 3,  # and so is now and then a batch
        [(0.5, 1.0)] * (WARM_UP + JUDGED - 1),  # a short run
    ],
)
def test_others_are_told_nothing(corpus: Path, recwarn: pytest.WarningsRecorder, steps: list) -> None:
    assert advice(corpus, steps, recwarn) == []
