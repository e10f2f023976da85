"""The peak of memory that a call allocates, counted tensor storage by tensor storage."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are made under it, until they are freed.

    Args:
        known: the storages that exist before; these and views of them cost nothing.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.seen = known
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        # The next storage may get the address of this one.
        self.seen.discard(key)
        self.live -= size


def peak_bytes(
    call: Callable[[torch.Tensor], object], x: torch.Tensor, tensors: list[torch.Tensor]
) -> int:
    """Return the most bytes that live at once among those that a call allocates.

    Every operator's outputs are seen by a dispatch mode; each new storage counts from the operator
    that makes it until its finalizer runs, in the moment its last tensor goes. So the number is
    exact and the same on every run. Scratch memory inside of a kernel is not seen; it is the same
    for every form of a model. What the call frees of older memory is not subtracted.

    Args:
        call: the forward; runs once.
        x: its input.
        tensors: what exists before: parameters and buffers.
    """
    known = {tensor.untyped_storage()._cdata for tensor in (x, *tensors)}
    with torch.no_grad(), _LiveBytes(known) as counter:
        call(x)
    return counter.peak
