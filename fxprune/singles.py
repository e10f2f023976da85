"""Whether a graph is right for a batch of one, which torch.export takes for a case of its own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.batching import Batched
from fxprune.checker import observe
from fxprune.errors import FxpruneError
from fxprune.program import Program
from fxprune.source import with_flags

__all__ = ["takes_a_batch_of_one"]

_MANY = 7  # rows; a prime, so that a constant of forward is hardly taken for a number of rows


def takes_a_batch_of_one(program: Program, source: nn.Module, example: Batched) -> bool:
    """Tell whether the source treats one row as it treats several.

    torch.export assumes that no size is 0 or 1 and notes no condition for it, so that a forward
    which decides on `x.shape[0] > 1` would follow the other way without a word. Where a run without
    numbers does not tell, the source and the Program are run on one row and compared.

    Args:
        program: as captured.
        source: the private copy that it was captured from.
        example: the inputs of the capture.
    """
    leaves, tree = pytree.tree_flatten((example.args, example.kwargs))
    dims = example.dims
    if all(dim is None for dim in dims) or any(p.is_meta for p in source.parameters()):
        return True
    if _calls_the_same(source, example):
        return True
    rows = [x if d is None else x.narrow(d, 0, 1) for x, d in zip(leaves, dims, strict=True)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted, found = (_observed(module, rows, tree) for module in (source, program))
    except FxpruneError:
        return True  # dimensions that are not the batch after all: the input check says so
    except Exception:  # noqa: BLE001 - forward itself may refuse a batch of one, in any way
        return False
    return len(wanted) == len(found) and all(map(_close, wanted, found))


def _calls_the_same(source: nn.Module, example: Batched) -> bool:
    """Tell whether one row and several make the same calls of torch, as far as can be told."""
    tensors = (*source.parameters(), *source.buffers())
    memo: dict[int, Any] = {id(tensor): _on_meta(tensor) for tensor in tensors}
    try:
        moved = copy.deepcopy(source, memo)
        one, many = (_calls(moved, example, size) for size in (1, _MANY))
        return len(one) == len(many) and all(map(_alike, one, many))
    except Exception:  # noqa: BLE001 - forward needs numbers, or tensors that were not moved
        return False


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    moved = tensor.detach().to("meta")
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved


def _calls(model: nn.Module, example: Batched, size: int) -> list[Any]:
    """Return what a model calls and returns in eval mode, for a batch of some size."""
    leaves, tree = pytree.tree_flatten((example.args, example.kwargs))
    given = [_resized(leaf, dim, size) for leaf, dim in zip(leaves, example.dims, strict=True)]
    args, kwargs = pytree.tree_unflatten(given, tree)
    with with_flags(model, False), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _Calls(given) as calls:
            returned = model(*args, **kwargs)
    calls.note(str(pytree.tree_structure(returned)), returned)
    return calls.made


def _resized(leaf: Any, dim: int | None, size: int) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    shape = list(leaf.shape)
    if dim is not None:
        shape[dim] = size
    return torch.empty(shape, dtype=leaf.dtype, device="meta")


class _Calls(TorchFunctionMode):
    """Records the torch functions that run, their constants, and where their tensors come from."""

    def __init__(self, inputs: list[Any]) -> None:
        super().__init__()
        self.made: list[Any] = []
        # Held, so that no id is used again; of stored tensors the id is the source.
        self._held: list[Any] = [inputs]
        self._sources = {id(x): f"input {i}" for i, x in enumerate(inputs)}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.note(func, (args, kwargs))
        found = func(*args, **(kwargs or {}))
        self._held.append(found)
        for place, leaf in enumerate(pytree.tree_leaves(found)):
            if isinstance(leaf, torch.Tensor):
                self._sources[id(leaf)] = f"{len(self.made)}, {place}"
        return found

    def note(self, called: Any, values: Any) -> None:
        """Record a call, or what is returned."""
        leaves = [list(x) if isinstance(x, torch.Size) else x for x in pytree.tree_leaves(values)]
        self.made.append((called, [self._source(leaf) for leaf in pytree.tree_leaves(leaves)]))

    def _source(self, leaf: Any) -> Any:
        is_tensor = isinstance(leaf, torch.Tensor)
        return self._sources.get(id(leaf), f"stored {id(leaf)}") if is_tensor else leaf


def _alike(one: tuple[Any, list[Any]], many: tuple[Any, list[Any]]) -> bool:
    """Tell whether two calls differ by the numbers of rows alone."""
    if one[0] != many[0] or len(one[1]) != len(many[1]):
        return False
    return all(map(_is_as_many, one[1], many[1]))


def _is_as_many(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    return bool(a == b) or (type(a) is int and a * _MANY == b)


def _observed(module: nn.Module, rows: list[Any], tree: pytree.TreeSpec) -> list[Any]:
    """Run a copy on copies: forward may write to its inputs, and to buffers that are shared."""
    own = [row.detach().clone() if isinstance(row, torch.Tensor) else row for row in rows]
    args, kwargs = pytree.tree_unflatten(own, tree)
    return observe(copy.deepcopy(module), args, kwargs)


def _close(a: Any, b: Any) -> bool:
    """Tell whether two outputs are alike; kernels chosen by size or gradient round differently."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.allclose(a, b, rtol=1e-2, atol=1e-4, equal_nan=True)
