"""Axes joined with each other, and axes taken as one list of channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch.fx.node import Node

from fxprune.atoms import Atoms
from fxprune.factors import Array, Axis, Factor, Ids, Value, sizes_of
from fxprune.regroup import match_axes
from fxprune.sizes import OPEN

__all__ = ["Flat", "flat_of", "joined_axis"]

_EACH = "the axis has parts that can be cut each in its own way"


@dataclass(frozen=True)
class Flat:
    """An axis as one factor.

    Args:
        size: of the axis.
        atoms: the atom of each index; None where nothing of it may be cut.
        const: what the value is at each index, or at all of them, wherever it is along the other
            axes; NaN where it is not known. Shape (size,) or (1,).
    """

    size: int
    atoms: Ids | None
    const: Array

    @property
    def factor(self) -> Factor:
        """The same as a factor."""
        return Factor(self.size, self.atoms)

    @property
    def spread(self) -> Array:
        """The constants, one an index."""
        return np.broadcast_to(self.const, (self.size,))


def flat_of(atoms: Atoms, value: Value, axis: int, node: Node) -> Flat:
    """Return an axis as one factor; what cannot be told apart is pinned.

    Args:
        atoms: where it is pinned.
        value: whose axis it is.
        axis: which.
        node: for whom.
    """
    factors = value.axes[axis]
    size = sizes_of(factors)
    const = _along(value, axis)
    if len(factors) == 1:
        return Flat(size, factors[0].atoms, const.reshape(-1))
    tracked = _tracked(atoms, factors, node)
    if size >= OPEN:
        for factor in factors:
            atoms.pin(factor.atoms, _EACH, node)
        return Flat(size, None, np.full(1, np.nan))
    sizes = [factor.size for factor in factors]
    cells: Ids | None = None
    if tracked:
        ids = factors[tracked[0]].atoms
        shape = [1] * len(sizes)
        shape[tracked[0]] = -1
        cells = None if ids is None else np.broadcast_to(ids.reshape(shape), sizes).reshape(-1)
    spread = const.reshape(-1) if const.size == 1 else np.broadcast_to(const, sizes).reshape(-1)
    return Flat(size, cells, spread)


def _tracked(atoms: Atoms, factors: Axis, node: Node) -> list[int]:
    """Return which factor can be cut, if any: the first that is no copy; all others stay."""
    tracked = [at for at, factor in enumerate(factors) if factor.atoms is not None]
    tracked.sort(key=lambda at: factors[at].copies)
    for at in tracked[1:]:
        atoms.pin(factors[at].atoms, _EACH, node)
    return tracked[:1]


def joined_axis(atoms: Atoms, left: Axis, right: Axis, node: Node) -> Axis | None:
    """Tie two axes of one size, index by index.

    Returns:
        The axis that stands for both; None where they are made of different parts.
    """
    pair = (left, right) if _alike(left, right) else match_axes(atoms, left, right)
    if pair is None:
        return None
    made: list[Factor] = []
    for a, b in zip(*pair, strict=True):
        if a.atoms is not None and b.atoms is not None:
            atoms.tie(a.atoms, b.atoms)
        else:
            for part in (a, b):
                atoms.pin(part.atoms, "it meets a value that cannot be cut", node)
        made.append(b if a.atoms is None or (a.copies and b.atoms is not None) else a)
    return tuple(made)


def _alike(left: Axis, right: Axis) -> bool:
    return [factor.size for factor in left] == [factor.size for factor in right]


def _along(value: Value, axis: int) -> Array:
    """Return const with the factors of one axis as its dimensions; NaN where others matter."""
    first = value.first_factor(axis)
    last = first + len(value.axes[axis])
    others = tuple(d for d in range(value.const.ndim) if not first <= d < last)
    if all(value.const.shape[d] == 1 for d in others):
        return value.const.reshape(value.const.shape[first:last])
    low, high = value.const.min(axis=others), value.const.max(axis=others)
    return np.where(low == high, low, np.nan)  # NaN stays NaN
