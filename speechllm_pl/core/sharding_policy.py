"""How weights are split over ranks, and what is not split: what training does and the plan foresees."""

from typing import Literal

from speechllm_pl.core.errors import UserError

ShardWithin = Literal["node", "all"] | int
"""Ranks that hold one copy of the weights together: those of a node, all, or so many consecutive ones."""


def gatherable(free: float) -> float:
    """Largest whole copy, in bytes, that validation gathers into `free` bytes: decoding needs the rest."""
    return 0.7 * free


def group_size(within: ShardWithin, ranks: int, ranks_of_node: int) -> int:
    """The number of ranks over which each weight is split, as `ShardedStrategy.shard_within` asks.

    Raises:
        UserError: the group has only one rank, or does not divide all ranks.
    """
    if within == "all" or (within == "node" and ranks_of_node == 1):
        return ranks
    size = ranks_of_node if within == "node" else int(within)
    if size < min(2, ranks) or ranks % size:
        raise UserError(
            f"shard_within {within}: {ranks} ranks do not make groups of {size}; give node, all, or a divisor of"
            f" {ranks} from 2 on"
        )
    return size


def refuse_quantized_shards(quantize: str, strategy: str) -> None:
    """Refuse to shard an LLM whose weights are quantised.

    Args:
        quantize: quantisation of the LLM, or `none`.
        strategy: name of a strategy that shards.
    """
    if quantize != "none":
        raise UserError(
            f"quantize {quantize} does not go with FSDP ({strategy}): quantised weights cannot be sharded. Keep them"
            " whole on every device (TRAINER=ddp or single), or set --model.quantize none"
        )
