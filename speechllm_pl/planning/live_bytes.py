"""Count the live bytes of tensors operation by operation, and floating point operations.

Works on fake tensors (`torch._subclasses.FakeTensorMode`), which have shapes, dtypes and lifetimes but no memory,
as well as on real ones.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class LiveBytes(TorchDispatchMode):
    """Counts, while it is entered, the storages that operations create, until nothing refers to them.

    Attributes:
        category: category of storages created from now on.
        live: bytes alive now, by category.
        at_peak: bytes alive when the sum over `peak_of` was largest, by category.
        flops: of matrix products, convolutions and attention, two for a multiply-add.

    Args:
        known: tensors whose storages are not counted, such as weights.
        peak_of: the categories whose sum is watched.
    """

    def __init__(self, known: Iterable[Tensor] = (), peak_of: Iterable[str] = ("activations",)):
        super().__init__()
        self.peak_of = tuple(peak_of)
        self.category = self.peak_of[0]
        self.live: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.flops = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._watched: dict[int, Any] = {storage._cdata: None for storage in self._known}
        self._category_of: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=output)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._watch(leaf)
        return output

    def count_from_now(self, category: str) -> None:
        self.category = category

    def count_as(self, tensor: Tensor, category: str) -> None:
        """Move a tensor that is alive to another category."""
        key = tensor.untyped_storage()._cdata
        if (former := self._category_of.get(key)) is not None:
            size = tensor.untyped_storage().nbytes()
            self._category_of[key] = category
            self.live[former] -= size
            self.live[category] += size

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._watched:
            return
        self._watched[key] = weakref.ref(storage, lambda _: self._freed(key, size))
        self._category_of[key] = self.category
        self.live[self.category] += size
        if self._sum(self.live) > self._sum(self.at_peak):
            self.at_peak = self.live.copy()

    def _freed(self, key: int, size: int) -> None:
        del self._watched[key]
        self.live[self._category_of.pop(key)] -= size

    def _sum(self, counts: Counter[str]) -> int:
        return sum(counts[category] for category in self.peak_of)
