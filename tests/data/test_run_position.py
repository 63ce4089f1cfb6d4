"""Positions of runs: what is left of an epoch, by hand, on any number of ranks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.epoch_plan import EpochBatches
from speechllm_pl.data.run_position import RunPosition, leave_finished_epoch

DATA = {"batches": 12, "seed": 1}


def plan(epoch: int = 3, **ranks: int) -> EpochBatches:
    """Twelve batches of an utterance each."""
    return EpochBatches(Buckets(np.full(12, 4.0, np.float32), 4.0, 1), seed=1, epoch=epoch, **ranks)


def progress(steps: int, last: bool = False) -> Any:
    return SimpleNamespace(current=SimpleNamespace(processed=steps), is_last_batch=last)


def test_a_position_counts_batches_of_all_ranks_and_survives_its_record() -> None:
    position = RunPosition.of(plan(world_size=2), progress(3), DATA)
    assert (position.epoch, position.batches, position.steps) == (3, 6, 3)
    assert RunPosition.of_state(position.state()) == position
    assert RunPosition.of(plan(world_size=2), progress(6, last=True), DATA).batches == 12
    assert RunPosition.of_state({}) is None


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_goes_on_with_just_the_rest(ranks: int) -> None:
    whole = [tuple(batch.indices) for batch in plan()]
    position = RunPosition.of(plan(world_size=2), progress(3), DATA)
    rest = [
        [tuple(batch.indices) for batch in position.resumed(plan(rank=rank, world_size=ranks), DATA)]
        for rank in range(ranks)
    ]
    assert [batch for turn in zip(*rest, strict=True) for batch in turn] == whole[6:]
    assert len(position.resumed(plan(world_size=ranks), DATA)) == 3 + 6 // ranks


def test_another_epoch_begins_with_its_first_batch() -> None:
    position = RunPosition.of(plan(), progress(5), DATA)
    assert len(list(position.resumed(plan(epoch=4), DATA))) == 12


def test_other_data_begin_the_epoch_again_and_say_so() -> None:
    position = RunPosition.of(plan(), progress(5), DATA)
    with pytest.warns(UserWarning, match="epoch 3 begins again with its first batch"):
        resumed = position.resumed(plan(), DATA | {"seed": 2})
    assert (len(list(resumed)), len(resumed)) == (12, 17)


def test_an_epoch_that_is_finished_has_nothing_left() -> None:
    position = RunPosition.of(plan(), progress(12, last=True), DATA)
    assert list(position.resumed(plan(), DATA | {"seed": 2})) == []


@pytest.mark.parametrize(("restarting", "last"), [(True, True), (True, False), (False, True)])
def test_only_a_run_that_stopped_after_the_last_batch_leaves_its_epoch(restarting: bool, last: bool) -> None:
    current = SimpleNamespace(ready=4, started=4, processed=4, completed=4)
    loop = SimpleNamespace(restarting=restarting, batch_progress=SimpleNamespace(current=current, is_last_batch=last))
    leave_finished_epoch(loop, 9)
    moved = (9, 9, 9, 8) if restarting and last else (4, 4, 4, 4)
    assert (current.ready, current.started, current.processed, current.completed) == moved
