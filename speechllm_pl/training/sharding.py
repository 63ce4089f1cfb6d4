"""Parallelism applied to a model from outside: the model knows neither ranks nor shards.

FSDP2 (`fully_shard`) per decoder layer and per encoder block, on CPUs over gloo as on GPUs over NCCL. Frozen and
trained parameters may share a layer, each in its own type: gradients and their reduction are as exact as the
trained weights (fp32).
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from speechllm_pl.core.sharding_policy import ShardWithin, gatherable, group_size
from speechllm_pl.core.tensor_sizes import GIB
from speechllm_pl.models.adjustments import replace_tensors
from speechllm_pl.models.device_memory import free_memory
from speechllm_pl.storage.checkpoints import Save, read_checkpoint, read_record, save_at_once
from speechllm_pl.storage.consolidated import is_consolidated
from speechllm_pl.storage.shards import (
    MODEL,
    load_shards,
    optimizer_groups,
    optimizer_tensors,
    save_shards,
)

SHARDS = "optimizer_shards"
"""The entry of a checkpoint in memory that holds the optimiser's tensors by name; on disk they are in the shards."""

GATHERED_IN_BF16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
"""Policy for weights that are kept in fp32, and whose products autocast computes in bf16 anyway."""


def shard(model: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh, in_bf16: Collection[nn.Module] = ()) -> None:
    """Split every parameter over the ranks of `mesh`; a layer is gathered as a whole when it is needed.

    The weights are those of the first rank: on the others they may be on the meta device, so that only one rank
    ever holds a full copy.

    Args:
        model: changed in place; its parameters become DTensors.
        layers: gathered one at a time; what is left of the model is gathered for all of its forward pass.
        mesh: mesh of all ranks. With two dimensions, weights are split along the second and replicated along the first.
        in_bf16: layers that are gathered in bf16. All of their weights must be trained and of one type.
    """
    first = dist.get_rank() == 0
    whole: dict[str, Tensor] = {}
    if first:
        whole = {name: p.detach() for name, p in model.named_parameters()} | dict(model.named_buffers())
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=GATHERED_IN_BF16 if layer in in_bf16 else MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh)
    device = torch.device(f"cuda:{torch.cuda.current_device()}" if mesh.device_type == "cuda" else "cpu")
    if any(p.is_meta for p in model.parameters()) or any(b.is_meta for b in model.buffers()):
        model.to_empty(device=device)
    model.to(device)
    if mesh.size() == 1:
        return
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _scatter(cast(DTensor, parameter), whole.pop(name, None), mesh, device)
        for name, buffer in model.named_buffers():
            if first:
                buffer.copy_(whole[name])
            dist.broadcast(buffer, src=0)


def _scatter(shards: DTensor, whole: Tensor | None, mesh: DeviceMesh, device: torch.device) -> None:
    """Fill each rank's shard from the first rank's `whole`, which the others do not have."""
    source = torch.empty(shards.shape, dtype=shards.dtype, device=device) if whole is None else whole.to(device)
    shards.to_local().copy_(distribute_tensor(source, mesh, shards.placements).to_local())


@torch.no_grad()
def replicate(model: nn.Module, device: torch.device) -> None:
    """Copy the first rank's parameters and buffers to all others, which may have them on the meta device."""
    replace_tensors(model, lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)
    model.to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), src=0)


def gather(model: nn.Module, *, layers: bool = True) -> None:
    """Hold whole parameters on every rank until `release`.

    Forward passes then need no other rank, so ranks may decode different numbers of batches and tokens.

    Args:
        layers: layers to gather as well, which training gathers one at a time. Without them parts of the model may be
            called by themselves, but every rank must take part in each forward pass of a layer.
    """
    if isinstance(model, FSDPModule):
        model._get_fsdp_state()._lazy_init()
    for module in model.modules():
        if isinstance(module, FSDPModule) and (layers or module is model):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def release(model: nn.Module) -> None:
    """Return to shards after `gather`."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes, with checkpoints of what was trained, written by every rank.

    A checkpoint is a folder of safetensors shards and a record; it is read by any number of ranks and by runs
    that do not shard, whose checkpoints in turn are read here.

    Args:
        shard_within: Ranks that hold one copy of the weights together. With `node` the weights are split over the
            devices of each node and held alike on all nodes, so that layers are gathered inside a node, and only
            gradients travel between nodes. With `all` they are split over all devices, with a number over groups of
            that many consecutive ones.
        process_group_backend: Backend of torch's process group; torch's choice for the devices by default.
        timeout: Time for which ranks wait for each other, as `2:00:00`. A large LLM on a slow disk takes the first rank
            longer to read than the half hour of the default.
        gather_up_to_gib: Size in GiB of the largest model that validation gathers whole on each device, so that ranks
            decode independently. A larger one stays in shards, and all ranks decode in lockstep. By default a share of
            the free memory decides (`gatherable`).
    """

    def __init__(
        self,
        shard_within: ShardWithin = "node",
        process_group_backend: str | None = None,
        gather_up_to_gib: float | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ):
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        self.shard_within: ShardWithin = shard_within
        self.gather_up_to_gib = gather_up_to_gib
        self._groups: DeviceMesh | None = None

    def setup_environment(self) -> None:
        """Set up the process group and the device mesh.

        Raises:
            UserError: `shard_within` does not divide the ranks.
        """
        ranks = self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        size = group_size(self.shard_within, ranks, self.num_processes)
        super().setup_environment()
        if size < ranks:
            shape, names = (ranks // size, size), ("replicate", "shard")
            self._groups = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    @property
    def mesh(self) -> DeviceMesh:
        """Mesh of all ranks: weights are split along its last dimension, and replicated along the first of two."""
        return self.device_mesh["data_parallel"] if self._groups is None else self._groups

    def may_gather(self, size: float) -> bool:
        """Whether every device has room for a whole copy of `size` bytes. Collective: all ranks say the same."""
        if self.gather_up_to_gib is not None:
            return size <= self.gather_up_to_gib * GIB
        return self.reduce_boolean_decision(size <= gatherable(free_memory(self.root_device, self.num_processes)))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state in shards; the module leaves out entries that are not saved."""
        return cast(nn.Module, self.lightning_module).state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimiser's parameter groups, by parameter names. Its tensors go into the shards."""
        return {"param_groups": optimizer_groups(self._names(), _plain(optimizer))}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Save | None = None) -> None:
        """Write a checkpoint. Collective: every rank writes its shards.

        Raises:
            UserError: a rank cannot write.
        """
        checkpoint[SHARDS] = {}
        for optimizer in self.optimizers:
            checkpoint[SHARDS] |= optimizer_tensors(self._names(), _plain(optimizer))
        save = storage_options or save_at_once
        save(checkpoint, Path(self.broadcast(str(filepath))), partial(write_shards, group=self._writing))

    @cached_property
    def _writing(self) -> dist.ProcessGroup:
        """Process group of all ranks for the thread that writes, apart from the collectives of training."""
        return cast(dist.ProcessGroup, dist.new_group(backend="gloo"))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights and optimiser; return the rest. Collective."""
        path = Path(self.broadcast(str(checkpoint_path)))
        module = cast(Any, self.lightning_module)
        shards = path.is_dir() and not is_consolidated(path)
        checkpoint = read_record(path) if shards else read_checkpoint(path, optimizer=True)
        module.on_load_checkpoint(checkpoint)  # before anything is overwritten
        for optimizer in self.optimizers:  # its state exists after its first step only
            get_optimizer_state_dict(module, _plain(optimizer))
        if shards:
            self._load_sharded(path, checkpoint)
        else:
            self._load_whole(checkpoint)
        return checkpoint

    def _load_sharded(self, path: Path, checkpoint: dict[str, Any]) -> None:
        module = cast(Any, self.lightning_module)
        tensors = {MODEL + name: value for name, value in module.state_dict().items() if module.is_saved(name)}
        for optimizer in self.optimizers:
            tensors |= optimizer_tensors(self._names(), _plain(optimizer))
        load_shards(path, tensors, self._writing)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            _restore_groups(_plain(optimizer), saved)

    def _load_whole(self, checkpoint: dict[str, Any]) -> None:
        module = cast(Any, self.lightning_module)
        state = checkpoint["state_dict"]
        module.check_tensors(state)
        with torch.no_grad():
            _fill({name: value for name, value in module.state_dict().items() if name in state}, state)
            names = self._names()
            for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
                plain = _plain(optimizer)
                if saved["state"]:  # none when no step was taken yet
                    _fill(optimizer_tensors(names, plain), optimizer_tensors(names, plain, saved))
                _restore_groups(plain, saved)

    def _names(self) -> dict[nn.Parameter, str]:
        return {p: name for name, p in cast(nn.Module, self.lightning_module).named_parameters()}


def write_shards(checkpoint: dict[str, Any], path: Path, group: dist.ProcessGroup) -> None:
    """Write a folder of a checkpoint's tensors, each rank its shards. Collective."""
    tensors = {MODEL + name: value for name, value in checkpoint["state_dict"].items()} | checkpoint.get(SHARDS, {})
    record = {key: value for key, value in checkpoint.items() if key not in ("state_dict", SHARDS)}
    save_shards(path, record, tensors, group)


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _fill(targets: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into tensors that may be shards of them."""
    for name, target in targets.items():
        source = whole[name]
        if isinstance(target, DTensor):
            source = distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None)
            target.to_local().copy_(source.to_local())
        else:
            target.copy_(source)


def _restore_groups(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    for group, settings in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in settings.items() if key != "params"})
