"""How two values differ: in kind, in bits, or by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.bits import same_bits
from fxprune.wording import dtype_name

__all__ = ["Difference", "Holder", "largest_gap"]


@dataclass(frozen=True)
class Difference:
    """How one value differs from another.

    Args:
        where: which value, as "output['logits']".
        size: the largest absolute difference; infinite where they cannot be subtracted.
        text: what differs, as "differs by up to 0.5"; empty where nothing does.
    """

    where: str
    size: float
    text: str = ""


@dataclass(frozen=True)
class Holder:
    """Holds values to each other by a promise.

    Args:
        bound: the largest difference allowed, times the largest number compared where that is
            above 1; None for bit equality.

    Example:
        >>> holder = Holder(bound=None)
        >>> [difference.text for difference in holder.nests("output", [1, 2], [1, 3])]
        ['', 'is 2 after and 3 before']
    """

    bound: float | None

    def nests(self, name: str, after: Any, before: Any) -> list[Difference]:
        """Return one Difference a leaf of two nested values, whether it differs or not.

        Args:
            name: what the whole is called.
            after: any pytree.
            before: a pytree that should have the same structure.
        """
        first, tree = pytree.tree_flatten_with_path(after)
        second, other = pytree.tree_flatten(before)
        if tree != other:
            text = f"is nested otherwise: {_shape_of(after)} after, {_shape_of(before)} before"
            return [Difference(name, math.inf, text)]
        pairs = zip(first, second, strict=True)
        return [self.leaves(f"{name}{pytree.keystr(path)}", a, b) for (path, a), b in pairs]

    def leaves(self, where: str, after: Any, before: Any) -> Difference:
        """Return how two values differ that are no containers."""
        if not (isinstance(after, torch.Tensor) and isinstance(before, torch.Tensor)):
            text = "" if _equal(after, before) else f"is {after!r} after and {before!r} before"
            return Difference(where, math.inf if text else 0.0, text)
        if after.shape != before.shape or (self.bound is None and after.dtype != before.dtype):
            text = f"is {_kind(after)} after and {_kind(before)} before"
            return Difference(where, math.inf, text)
        gap = largest_gap(after, before)
        kept = same_bits(after, before) if self.bound is None else gap <= self._allowed(before)
        if kept:
            return Difference(where, gap)
        if gap == 0:
            return Difference(where, gap, "differs in the bits of zeros or NaN only")
        return Difference(where, gap, f"differs by up to {gap:.3g}")

    def _allowed(self, before: torch.Tensor) -> float:
        values = _wide(before).abs()
        values = values[values.isfinite()]
        return (self.bound or 0.0) * max(1.0, float(values.max()) if values.numel() else 0.0)


def largest_gap(after: torch.Tensor, before: torch.Tensor) -> float:
    """Return the largest absolute difference; NaN equals NaN, and infinity infinity.

    Args:
        after: any tensor.
        before: of the same shape.

    Example:
        >>> inf, nan = float("inf"), float("nan")
        >>> largest_gap(torch.tensor([1.0, inf, nan]), torch.tensor([1.5, inf, nan]))
        0.5
        >>> largest_gap(torch.tensor(nan), torch.tensor(0.0))
        inf
    """
    a, b = _wide(after), _wide(before)
    equal = (a == b) | (a.isnan() & b.isnan())
    gaps = (a - b).abs().masked_fill(equal, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
    return float(gaps.max()) if gaps.numel() else 0.0


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _equal(after: Any, before: Any) -> bool:
    if type(after) is not type(before):
        return False
    try:
        return after is before or bool(after == before)
    except (RuntimeError, TypeError, ValueError):  # a class whose == gives no single answer
        return False


def _kind(tensor: torch.Tensor) -> str:
    return f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"


def _shape_of(value: Any) -> str:
    return str(pytree.tree_map(lambda _: "*", value)).replace("'*'", "*")
