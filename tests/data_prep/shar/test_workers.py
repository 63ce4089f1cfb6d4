"""Workers count together what each of them has done."""

import functools
from collections.abc import Callable

from data_prep.shar.workers import counting_pool, run_counted


def do(times: int, *, done: Callable[[], None]) -> None:
    for _ in range(times):
        done()


def test_the_number_is_that_of_all_workers() -> None:
    with counting_pool(2) as (pool, counter):
        for running in [pool.submit(run_counted, functools.partial(do, times)) for times in (3, 0, 50, 7)]:
            running.result()
        assert counter.value == 60
