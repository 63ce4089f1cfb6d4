"""Placement of a recogniser on devices: reading its weights, sharding them, and gathering them for validation."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.tensor_sizes import GIB, tensor_bytes
from speechllm_pl.models.adjustments import checkpoint_activations
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.training.sharding import ShardedStrategy, gather, release, replicate, shard


class Placed(L.LightningModule):
    """Module whose `model` is placed on devices by the options and the trainer's strategy.

    Args:
        activation_checkpointing: keep only the inputs of the layers passed to `arrange`.
        compile_encoder: `torch.compile` for the encoder's blocks.
    """

    model: nn.Module
    make_optimizer: Callable[[Any], torch.optim.Optimizer]

    def __init__(self, *, activation_checkpointing: bool, compile_encoder: bool):
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.compile_encoder = compile_encoder
        self.in_lockstep = False  # a forward pass needs one on every other rank: the model is validated in shards

    @property
    @abstractmethod
    def speech(self) -> CtcModel:
        """Features, encoder and CTC head."""

    def setup(self, stage: str) -> None:
        """Check the optimiser before any weight is read.

        Raises:
            UserError: the optimiser does not work on shards.
        """
        kind = type(self.make_optimizer([torch.zeros(1)]))
        if self._mesh is not None and kind.__module__.startswith("bitsandbytes"):
            raise UserError(
                f"{kind.__name__} does not go with FSDP (ShardedStrategy): its state is not sharded. Take TRAINER=ddp,"
                " or an optimiser of torch (--model.optimizer torch.optim.AdamW)"
            )

    @property
    def one_rank_reads(self) -> bool:
        """Whether only the first rank reads weights and sends the others theirs."""
        several = self._trainer is not None and self.trainer.world_size > 1
        return several and isinstance(self._strategy, ShardedStrategy | DDPStrategy)

    @property
    def receives_weights(self) -> bool:
        """Whether this rank receives its weights from another, and may build the model without them."""
        return self.one_rank_reads and self.trainer.global_rank > 0

    def of_first_rank(self, value: str) -> str:
        """The first rank's value, of files that the others may not have. Collective."""
        several = self._trainer is not None and self.trainer.world_size > 1
        return self.trainer.strategy.broadcast(value) if several else value

    def arrange(self, layers: Iterable[nn.Module], trained_llm: Collection[nn.Module] = ()) -> None:
        """Shard, replicate, compile and checkpoint the built model by the options and the trainer's strategy.

        Args:
            layers: layers that are gathered, and recomputed, one at a time.
            trained_llm: the LLM's layers among them, if the LLM is trained whole: with bf16 products they are
                gathered in bf16.
        """
        layers = list(layers)
        if self.activation_checkpointing:
            checkpoint_activations(layers)
        if self.compile_encoder:
            for block in self.speech.layers:
                block.compile(dynamic=True)
        if self._mesh is not None:
            shard(self.model, layers, self._mesh, trained_llm if self.trainer.precision == "bf16-mixed" else ())
        elif self.one_rank_reads:
            replicate(self.model, self.trainer.strategy.root_device)

    @property
    def _strategy(self) -> Strategy | None:
        return None if self._trainer is None else self.trainer.strategy

    @property
    def _mesh(self) -> DeviceMesh | None:
        return self._strategy.mesh if isinstance(self._strategy, ShardedStrategy) else None

    def _gather(self) -> None:
        """Gather the whole model on each rank before decoding; where it does not fit, ranks decode in lockstep."""
        strategy = self._strategy
        if not isinstance(strategy, ShardedStrategy):
            return
        size = tensor_bytes(self.model.parameters())
        self.in_lockstep = not strategy.may_gather(size)
        if self.in_lockstep:
            rank_zero_info(f"no device has room for a whole copy of {size / GIB:.2g} GiB: ranks decode in lockstep")
        gather(self.model, layers=not self.in_lockstep)

    def all_ended(self, ended: bool) -> bool:
        """Whether decoding may stop. Ranks that share weights stop when all of them have ended."""
        if not self.in_lockstep:
            return ended
        everywhere = torch.tensor(ended, dtype=torch.int, device=self.device)
        dist.all_reduce(everywhere, dist.ReduceOp.MIN)
        return bool(everywhere)

    def _release(self) -> None:
        if self._mesh is not None:
            release(self.model)
            self.in_lockstep = False
