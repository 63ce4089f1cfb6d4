"""Worker processes."""

import signal

import pytest

from data_prep.machinery.processes import parallel_map
from speechllm_pl.core.errors import UserError


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_what_was_given(jobs: int) -> None:
    with parallel_map(jobs, chunksize=2) as run:
        assert list(run(divmod, range(7), [3] * 7)) == [divmod(number, 3) for number in range(7)]


def test_a_process_that_dies_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="fewer --jobs"), parallel_map(2) as run:
        list(run(signal.raise_signal, [signal.SIGKILL]))
