"""Compare nested outputs, gradients and state dicts bit for bit, and say where they differ."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.bits import same_bits

__all__ = ["difference", "is_same"]


def difference(a: Any, b: Any) -> str | None:
    """Say the first place where two nests differ in structure, shape, dtype or bits."""
    first, first_spec = pytree.tree_flatten_with_path(a)
    second, second_spec = pytree.tree_flatten_with_path(b)
    if first_spec != second_spec:
        return f"the structures differ: {first_spec} and {second_spec}"
    for (path, x), (_, y) in zip(first, second, strict=True):
        if not _same_leaf(x, y):
            return f"at {pytree.keystr(path) or 'the top'}: {_told(x)} and {_told(y)}"
    return None


def is_same(a: Any, b: Any) -> bool:
    """Tell whether two nests have the same structure, shapes, dtypes and bits."""
    return difference(a, b) is None


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return same_bits(a, b)
    return type(a) is type(b) and a == b


def _told(x: Any) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    return f"{x.dtype} {tuple(x.shape)} {x.detach().flatten()[:12].tolist()}"
