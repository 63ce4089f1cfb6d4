"""How weights are split over ranks."""

import pytest

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.sharding_policy import group_size


def test_weights_are_split_within_a_node_where_there_are_several() -> None:
    assert group_size("node", 64, 8) == 8
    assert group_size("node", 8, 8) == group_size("all", 8, 4) == 8
    assert group_size("node", 4, 1) == 4  # one GPU each: there is nothing to split within
    assert group_size(4, 16, 8) == 4
    assert group_size("node", 1, 1) == 1
    for within in (1, 3, 32):
        with pytest.raises(UserError, match=f"shard_within {within}: 16 ranks"):
            group_size(within, 16, 8)
