"""Compare nested outputs, gradients and state dicts bit for bit, and say where they differ."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.bits import same_bits
from fxprune.wording import dtype_name

__all__ = ["DifferenceError", "difference", "entry_difference", "is_same"]


class DifferenceError(AssertionError):
    """Two things that should be equal differ; says where first, and by which values."""


def difference(a: Any, b: Any) -> str | None:
    """Return the first place where two nests differ in structure, shape, dtype or bits, or None.

    Args:
        a: any nest of containers and tensors.
        b: what it is held to.

    Example:
        >>> import torch
        >>> difference({"y": torch.tensor([1.0, 2.0])}, {"y": torch.tensor([1.0, 2.5])})
        "at ['y'], entry (1,): 2.0 and 2.5; 1 of 2 entries differ"
    """
    first, first_spec = pytree.tree_flatten_with_path(a)
    second, second_spec = pytree.tree_flatten_with_path(b)
    if first_spec != second_spec:
        return f"the structures differ: {first_spec} and {second_spec}"
    for (path, x), (_, y) in zip(first, second, strict=True):
        if not _same_leaf(x, y):
            return f"at {pytree.keystr(path) or 'the top'}{entry_difference(x, y)}"
    return None


def is_same(a: Any, b: Any) -> bool:
    """Tell whether two nests have the same structure, shapes, dtypes and bits."""
    return difference(a, b) is None


def entry_difference(a: Any, b: Any) -> str:
    """Return the first entry in which two tensors differ, with its values, or how others differ.

    Args:
        a: a tensor, or anything else.
        b: what it is held to, and differs from.
    """
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return f": {_told(a)} and {_told(b)}"
    if (a.shape, a.dtype) != (b.shape, b.dtype) or a.is_meta or b.is_meta:
        return f": {_told(a)} and {_told(b)}"
    a, b = a.detach().cpu(), b.detach().cpu()
    differ = ~((a == b) | ((a != a) & (b != b)))  # NaN alone differs from itself
    if not bool(differ.any()) and a.is_floating_point():
        differ = a.signbit() != b.signbit()
    where = differ.nonzero()
    if len(where) == 0:
        return ": the bits of NaN differ"
    at = tuple(where[0].tolist())
    count = f"{len(where)} of {a.numel()} entries differ"
    entry = f", entry {at}" if at else ""
    return f"{entry}: {a[at].item()} and {b[at].item()}; {count}"


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return same_bits(a, b)
    return type(a) is type(b) and bool(a == b)


def _told(x: Any) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    shape = "" if x.is_meta else f" {x.detach().flatten()[:12].tolist()}"
    return f"{dtype_name(x.dtype)} {tuple(x.shape)}{shape}"
