"""Whether a graph is right for a batch of one, which torch.export takes for a case of its own."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.batching import Batched
from fxprune.checker import observe
from fxprune.errors import FxpruneError
from fxprune.program import Program

__all__ = ["takes_a_batch_of_one"]


def takes_a_batch_of_one(program: Program, source: nn.Module, example: Batched) -> bool:
    """Run the source and the Program on one row of the example and compare.

    torch.export assumes that no size is 0 or 1 and notes no condition for it, so that a forward
    which decides on `x.shape[0] > 1` would follow the other way without a word.

    Args:
        program: as captured.
        source: the private copy that it was captured from.
        example: the inputs of the capture.
    """
    leaves, tree = pytree.tree_flatten((example.args, example.kwargs))
    dims = example.dims
    if all(dim is None for dim in dims) or any(p.is_meta for p in source.parameters()):
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
