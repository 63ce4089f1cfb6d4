"""What a run is told about the processes that read for its ranks."""

from speechllm_pl.data.loader import cpus_of_rank, workers_of_rank


def chosen_workers(num_workers: int | str, local_ranks: int, ranks: int, lanes: int) -> int:
    """Number of processes on each rank.

    Args:
        num_workers: as it was set. For `auto` so many that each reads lanes of its own, unless that were less than half
            of those there are CPUs for.
        local_ranks: ranks on this machine.
        ranks: ranks on all machines.
        lanes: lanes of the shards that are read; 0 where none are.
    """
    if isinstance(num_workers, int):
        return num_workers
    most = workers_of_rank(local_ranks)
    enough = range(most, max(0, (most - 1) // 2), -1)
    return next((workers for workers in enough if not lanes % (ranks * workers)), most)


def who_reads(num_workers: int | str, local_ranks: int, workers: int) -> str:
    """The line about it at a run's beginning, where `num_workers` was set and `workers` were chosen."""
    most = workers_of_rank(local_ranks)
    why = f"data.num_workers {num_workers}; CPUs for each rank: {cpus_of_rank(local_ranks)}"
    if workers:
        return f"loader processes that read ahead on each rank: {workers} ({why})"
    advice = f": there are CPUs for {most}, --data.num_workers auto takes them" if most else ""
    return f"no loader process reads ahead, each rank reads its own batches ({why}){advice}"


def faster_reading(num_workers: int | str, local_ranks: int) -> str:
    """Advice for a run that waits for data, with `num_workers` as it was set."""
    most = workers_of_rank(local_ranks)
    fewer = isinstance(num_workers, int) and num_workers < most
    more = f"--data.num_workers {most} instead of {num_workers}, " if fewer else ""
    return f"try {more}more CPUs for each rank (CPUS= in a SLURM job), or shards instead of files (make shar)"


def jumping(lanes: int, workers: int, ranks: int) -> str:
    """The warning that processes jump between shards, as their number does not divide the lanes; empty if it does."""
    readers = ranks * max(1, workers)
    if not lanes % readers:
        return ""
    fitting = [f"--data.num_workers {n}, or " for n in range(1, workers) if not lanes % (ranks * n)]
    more = -(-lanes // readers) * readers
    return (
        f"data.lanes {lanes} is no multiple of the {readers} processes that read, so these jump between"
        f" shards: give {''.join(fitting[-1:])}--data.lanes {more} (in a new run: it changes the order)"
    )
