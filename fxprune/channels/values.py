"""The values that channels flow through: axes as products of factors, and what may be cut of each.

    tensor     [N, C * H * W]          as a flattened image
    axes       ((N,), (C, H, W))       a view regroups factors and loses nothing
    atoms of C [17, 18, 19, 20]        a number for each channel that may be cut; None: nothing may
    units      {17, 31}, {18, 32}, ..  atoms that are tied go together (see `atoms`)
    const      of shape (1, C, 1, 1)   what the value is everywhere, a dimension a factor

Symbolic sizes are numbers as well: each symbol is a large prime, so that views are plain
arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Factor:
    """A part of an axis; a large prime as its size stands for a symbolic one."""

    size: int
    atoms: Ids | None = None  # of each index, shape (size,)
    # Whether all indices are the same, so that any may go: where an axis can be cut in one part
    # alone, that is another one.
    copies: bool = False


Axis = tuple[Factor, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph, as channels see it; axes and factors are listed outermost first."""

    axes: tuple[Axis, ...]
    # What holds everywhere in eval mode, float64, one dimension a factor, of size 1 where it does
    # not depend on that factor; NaN where it is not known.
    const: Array

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """All factors in row-major order."""
        return tuple(factor for axis in self.axes for factor in axis)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        return tuple(axis_size(axis) for axis in self.axes)

    def is_known(self) -> bool:
        """Tell whether anything is known of the value."""
        return not bool(np.isnan(self.const).all())

    def first_factor(self, axis: int) -> int:
        """Return where an axis's factors begin among all factors."""
        return sum(len(part) for part in self.axes[:axis])

    def dims(self, axis: int) -> tuple[int, ...]:
        """Return const's sizes along an axis."""
        first = self.first_factor(axis)
        return self.const.shape[first : first + len(self.axes[axis])]

    def axes_with(self, axis: int, *others: Axis) -> tuple[Axis, ...]:
        """Return the axes with others, or none, in one's place."""
        return (*self.axes[:axis], *others, *self.axes[axis + 1 :])


def axis_size(axis: Sequence[Factor]) -> int:
    """Return the size of an axis."""
    return math.prod(factor.size for factor in axis)


def unknown(axes: Sequence[Axis]) -> Value:
    """Return a value of which only the axes are known."""
    rank = sum(len(axis) for axis in axes)
    return Value(tuple(axes), np.full((1,) * rank, np.nan))


def opaque(shape: Sequence[int]) -> Value:
    """Return a value of which nothing may be cut."""
    return unknown([(Factor(size),) for size in shape])


def known_along(axes: Sequence[Axis], axis: int, const: Array) -> Value:
    """Return a value that is known along one axis alone; const has shape (size,) or (1,)."""
    sizes = [1] * sum(map(len, axes))
    if const.size != 1:  # of an empty part it is empty
        first = sum(map(len, axes[:axis]))
        sizes[first : first + len(axes[axis])] = [factor.size for factor in axes[axis]]
    return Value(tuple(axes), const.reshape(sizes))


def widen(const: Array, place: int, count: int = 1) -> Array:
    """Return constants with new dimensions at a place, along which they are the same."""
    return const.reshape([*const.shape[:place], *[1] * count, *const.shape[place:]])


# From this size on an axis is taken for an open one, which is never listed index by index.
OPEN = 10_000_000
_FIRST = 10_000_019


class Sizes:
    """Numbers for the symbolic sizes of one graph.

    Example:
        >>> sizes = Sizes()
        >>> batch, = sizes.of(["s0"])
        >>> sizes.of([3, "s0*8"]) == (3, 8 * batch)
        True
    """

    def __init__(self) -> None:
        self._primes: dict[str, int] = {}
        self._last = _FIRST - 2

    def of(self, shape: Sequence[int | str]) -> tuple[int, ...]:
        """Return the sizes of a shape as numbers."""
        return tuple(size if isinstance(size, int) else self._symbolic(size) for size in shape)

    def fixed_part(self, size: int) -> int:
        """Return a size without its symbols: 8 of `8*s0`."""
        for prime in self._primes.values():
            while size % prime == 0:
                size //= prime
        return size

    def _symbolic(self, size: str) -> int:
        product = 1
        for part in size.split("*"):
            text = part.strip("() ")
            product *= int(text) if text.isdigit() else self._prime(text)
        return product

    def _prime(self, symbol: str) -> int:
        if symbol not in self._primes:
            self._last += 2
            while any(self._last % d == 0 for d in range(3, int(self._last**0.5) + 1, 2)):
                self._last += 2
            self._primes[symbol] = self._last
        return self._primes[symbol]
