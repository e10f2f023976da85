"""Axes tied to each other, taken as one list of channels, and viewed in other shapes.

A view has the same factors in other axes, split where an axis takes only a part of one.
"""

from __future__ import annotations

import math
import operator
import string
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from torch.fx.node import Node

from fxprune.channels.atoms import Atoms
from fxprune.channels.values import OPEN, Array, Axis, Factor, Ids, Value, axis_size, unknown

_EACH = "the axis has parts that can be cut each in its own way"


@dataclass(frozen=True)
class Flat:
    """An axis as one factor."""

    size: int
    atoms: Ids | None  # of each index; None where nothing may be cut
    # What the value is at each index, or at all of them, wherever it is along the other axes; NaN
    # where it is not known. Shape (size,) or (1,).
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
    """Return an axis of a value as one factor; what cannot be told apart is pinned."""
    factors = value.axes[axis]
    size = axis_size(factors)
    const = _const_along(value, axis)
    if len(factors) == 1:
        return Flat(size, factors[0].atoms, const.reshape(-1))
    tracked = _pick_tracked(atoms, factors, node)
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


def _pick_tracked(atoms: Atoms, factors: Axis, node: Node) -> list[int]:
    """Return which factor can be cut, if any: the first that is no copy; all others stay."""
    tracked = [at for at, factor in enumerate(factors) if factor.atoms is not None]
    tracked.sort(key=lambda at: factors[at].copies)
    for at in tracked[1:]:
        atoms.pin(factors[at].atoms, _EACH, node)
    return tracked[:1]


def tie_axes(atoms: Atoms, left: Axis, right: Axis, node: Node) -> Axis | None:
    """Tie two axes of one size, index by index, and return the axis that stands for both.

    None where they are made of different parts.
    """
    alike = [factor.size for factor in left] == [factor.size for factor in right]
    pair = (left, right) if alike else match_axes(atoms, left, right)
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


def _const_along(value: Value, axis: int) -> Array:
    """Return const with the factors of one axis as its dimensions; NaN where others matter."""
    first, dims = value.first_factor(axis), value.dims(axis)
    others = tuple(d for d in range(value.const.ndim) if not first <= d < first + len(dims))
    if all(value.const.shape[d] == 1 for d in others):
        return value.const.reshape(dims)
    low, high = value.const.min(axis=others), value.const.max(axis=others)
    return np.where(low == high, low, np.nan)  # NaN stays NaN


# Takes the sizes of a factor's parts; returns the part that stays cuttable.
SplitChoice = Callable[[tuple[int, ...]], int]


def split_factor(atoms: Atoms, factor: Factor, parts: Sequence[int], tracked: int) -> list[Factor]:
    """Split a factor into parts; indices that are equal in the tracked part go together.

    The parts' sizes are outermost first; channels of the tracked part may still be cut.
    """
    made = [Factor(size) for size in parts]
    if factor.atoms is None:
        return made
    grid = np.moveaxis(factor.atoms.reshape(tuple(parts)), tracked, 0).reshape(parts[tracked], -1)
    atoms.tie(grid[:, 1:], grid[:, :1])
    made[tracked] = Factor(parts[tracked], np.ascontiguousarray(grid[:, 0]))
    if grid.shape[1] > 1:
        atoms.splits.append(grid[:, 0])
    return made


def reshape(
    atoms: Atoms, value: Value, shape: Sequence[int], choose: Callable[[int, int], SplitChoice]
) -> Value | None:
    """View a value in another shape; None where no size divides the factor that an axis takes of.

    `choose` takes the first new axis that a split factor's parts lie in, and how many parts it has;
    it returns the choice of the tracked one.
    """
    cut = _split_sizes([f.size for f in value.factors], shape)
    if cut is None:
        return None
    made: list[Factor] = []
    sizes: list[int] = []
    position = 1
    for at, (factor, parts) in enumerate(zip(value.factors, cut, strict=True)):
        if factor.size == 1:  # as an axis of its own it is made where the shape asks for it
            continue
        axis = _axis_at(shape, position)
        position *= factor.size
        if len(parts) <= 1:
            made.append(factor)
            sizes.append(value.const.shape[at])
            continue
        made += split_factor(atoms, factor, parts, choose(axis, len(parts))(tuple(parts)))
        whole = value.const.shape[at] > 1
        sizes += list(parts) if whole else [1] * len(parts)
    return _regroup(made, value.const.reshape(sizes), shape)


def loosen(value: Value, shape: Sequence[int]) -> tuple[Value, list[Factor]]:
    """Join factors whose boundaries cross those of a shape, as where scores are skewed.

    Returns the value in other axes, and the factors that were joined: nothing of them may be cut.
    """
    parts = [_products(shape), _products([factor.size for factor in value.factors])]
    common = sorted(set(parts[0]) & set(parts[1]))
    made: list[Factor] = []
    lost: list[Factor] = []
    before, run = 1, list[Factor]()
    for factor, product in zip(value.factors, parts[1], strict=True):
        run.append(factor)
        if product not in common:
            continue
        inside = sorted({p for part in parts for p in part if before < p <= product})
        nested = all(b % a == 0 for a, b in pairwise(inside))
        made += run if nested else [Factor(product // before)]
        lost += [] if nested else run
        before, run = product, []
    return unknown([(factor,) for factor in [*made, *run]]), lost


def _products(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(sizes, operator.mul))


def _split_sizes(factors: Sequence[int], shape: Sequence[int]) -> list[list[int]] | None:
    """Return into which parts each factor falls where the new axes' boundaries cross it."""
    ends = {math.prod(shape[: i + 1]) for i in range(len(shape))}
    if math.prod(factors) != math.prod(shape) or math.prod(shape) == 0:
        return None
    parts: list[list[int]] = []
    before = 1
    for size in factors:
        inside = sorted(end for end in ends if before < end < before * size)
        steps, last = list[int](), before
        for end in [*inside, before * size]:
            if end % last:
                return None
            steps.append(end // last)
            last = end
        parts.append(steps)
        before *= size
    return parts


def _axis_at(shape: Sequence[int], position: int) -> int:
    """Return the axis in which the product of outer sizes reaches a position."""
    return min(bisect_right(_products(shape), position), len(shape) - 1)


def _regroup(factors: list[Factor], const: Array, shape: Sequence[int]) -> Value | None:
    axes: list[Axis] = []
    dims: list[int] = []
    at = 0
    for size in shape:
        start, product = at, 1
        while at < len(factors) and product < size:
            product *= factors[at].size
            at += 1
        if product != size:
            return None
        axes.append(tuple(factors[start:at]) or (Factor(1),))
        dims += list(const.shape[start:at]) or [1]
    if any(factor.size != 1 for factor in factors[at:]):
        return None
    return Value(tuple(axes), const.reshape(dims))


def match_axes(atoms: Atoms, left: Axis, right: Axis) -> tuple[Axis, Axis] | None:
    """Split two axes of one size into equal factors, tracked in the same places, or None."""
    sizes = [f.size for f in left], [f.size for f in right]
    left_cut, right_cut = _split_sizes(*sizes), _split_sizes(*reversed(sizes))
    if left_cut is None or right_cut is None:
        return None
    a = _split_axis(atoms, left, left_cut, right, right_cut)
    b = _split_axis(atoms, right, right_cut, left, left_cut)
    return (a, b) if [f.size for f in a] == [f.size for f in b] else None


def _split_axis(
    atoms: Atoms, axis: Axis, cut: list[list[int]], other: Axis, other_cut: list[list[int]]
) -> Axis:
    # Which parts the other axis tracks: a split of this one should keep the same.
    tracked = [
        factor.atoms is not None and len(parts) <= 1
        for factor, parts in zip(other, other_cut, strict=True)
        for _ in (parts or [1])
        if factor.size > 1
    ]
    made: list[Factor] = []
    at = 0
    for factor, parts in zip(axis, cut, strict=True):
        if factor.size == 1:
            continue
        span = tracked[at : at + len(parts)]
        at += len(parts)
        if len(parts) <= 1:
            made.append(factor)
        else:
            keep = span.index(True) if True in span else 0
            made += split_factor(atoms, factor, parts, keep)
    return tuple(made) or (Factor(1),)


def letters_of(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return a letter for each axis of each operand of these ranks, and of the result.

    The equation is as torch.einsum takes it, perhaps with an ellipsis or without a result.

    Example:
        >>> letters_of("... i d, ... j d -> ... i j", [3, 3])
        (['Zid', 'Zjd'], 'Zij')
        >>> letters_of("ij,jk", [2, 2])
        (['ij', 'jk'], 'ik')
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    counts = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)]
    dots = "".join(spare[len(spare) - max([0, *counts]) :])
    if not arrow:
        once = [letter for letter in sorted(set(inputs) - set(",.")) if inputs.count(letter) == 1]
        output = "".join(["..." if "..." in inputs else "", *once])
    # The axes of an ellipsis are counted from the last one.
    spread = [
        t.replace("...", dots[len(dots) - n :] if n > 0 else "")
        for t, n in zip(terms, counts, strict=True)
    ]
    return spread, output.replace("...", dots)
