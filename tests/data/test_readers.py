"""What is said of the processes that read: how many, why, and what would be faster."""

import pytest

from speechllm_pl.data import loader, readers


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda _: range(16), raising=False)


def test_the_number_of_readers_is_told_with_its_reason() -> None:
    assert readers.who_reads("auto", 4, 3) == (
        "loader processes that read ahead on each rank: 3 (data.num_workers auto; CPUs for each rank: 4)"
    )
    assert readers.who_reads(2, 4, 2).startswith(
        "loader processes that read ahead on each rank: 2 (data.num_workers 2;"
    )


@pytest.mark.parametrize(("ranks", "most"), [(2, 7), (16, 0)])
def test_without_readers_those_that_there_are_cpus_for_are_advised(ranks: int, most: int) -> None:
    told = readers.who_reads(0, ranks, 0)
    assert told.startswith("no loader process reads ahead, each rank reads its own batches")
    assert (f"there are CPUs for {most}, --data.num_workers auto takes them" in told) == (most > 0)


def test_a_run_that_waits_is_advised_to_have_more_readers_only_where_there_are_cpus_for_them() -> None:
    assert "--data.num_workers 7 instead of 2, more CPUs" in readers.faster_reading(2, 2)
    for enough in (7, "auto"):
        assert readers.faster_reading(enough, 2).startswith("try more CPUs for each rank")


@pytest.mark.parametrize(("local_ranks", "nodes"), [(1, 1), (2, 1), (2, 3), (2, 4), (4, 2), (2, 32), (16, 1)])
@pytest.mark.parametrize("lanes", [0, 12, 24, 64])
def test_of_shards_auto_reads_with_as_many_processes_as_divide_the_lanes_or_with_all(
    lanes: int, local_ranks: int, nodes: int
) -> None:
    """Of 64 lanes four of seven processes on each of eight ranks read lanes of their own, but on 64 ranks only one."""
    ranks, most = local_ranks * nodes, min(8, 16 // local_ranks - 1)
    chosen = readers.chosen_workers("auto", local_ranks, ranks, lanes)
    fitting = [number for number in range(1, most + 1) if lanes % (ranks * number) == 0 and 2 * number >= most]
    assert chosen == (fitting[-1] if fitting else most)
    assert not fitting or not readers.jumping(lanes, chosen, ranks)
    assert readers.chosen_workers(5, local_ranks, ranks, lanes) == 5


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 3, 4, 5])
def test_lanes_that_are_no_multiple_of_the_readers_are_told_with_numbers_that_fit(ranks: int, workers: int) -> None:
    lanes, reading = 24, ranks * max(1, workers)
    told = readers.jumping(lanes, workers, ranks)
    assert bool(told) == (lanes % reading != 0)
    if told:
        more = int(told.split("--data.lanes ")[1].split()[0])
        assert more == next(number for number in range(lanes, 1000) if number % reading == 0)
        fewer = [number for number in range(1, workers) if lanes % (ranks * number) == 0]
        assert ("--data.num_workers" in told) == bool(fewer)
        assert not fewer or f"--data.num_workers {fewer[-1]}, or " in told
