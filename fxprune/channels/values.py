"""Axes as products of factors, and what may be cut of each: the values that channels flow through.

A view regroups factors and loses nothing: [C, H, W] flattened is one axis with three factors.

Symbolic sizes as numbers: each symbol is a large prime, so that views are plain arithmetic.
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
    """A part of an axis.

    Args:
        size: how many indices it has; a large prime stands for a symbolic size.
        atoms: the atom of each index, shape (size,); None where nothing may be cut.
        copies: whether all indices are the same, so that any may go: where an axis can be cut in
            one part alone, that is another one.
    """

    size: int
    atoms: Ids | None = None
    copies: bool = False


Axis = tuple[Factor, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph, as channels see it.

    Args:
        axes: its axes, outermost first, each a product of factors, outermost first.
        const: the value that holds everywhere in eval mode, float64, one dimension a factor, of
            size 1 where it does not depend on that factor; NaN where it is not known.
    """

    axes: tuple[Axis, ...]
    const: Array

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """All factors in row-major order."""
        return tuple(factor for axis in self.axes for factor in axis)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        return tuple(sizes_of(axis) for axis in self.axes)

    def known(self) -> bool:
        """Tell whether anything is known of the value."""
        return not bool(np.isnan(self.const).all())

    def first_factor(self, axis: int) -> int:
        """Return where an axis's factors begin among all factors."""
        return sum(len(part) for part in self.axes[:axis])


def sizes_of(axis: Sequence[Factor]) -> int:
    """Return the size of an axis."""
    return math.prod(factor.size for factor in axis)


def unknown(axes: Sequence[Axis]) -> Value:
    """Return a value of which only the axes are known."""
    rank = sum(len(axis) for axis in axes)
    return Value(tuple(axes), np.full((1,) * rank, np.nan))


def opaque(shape: Sequence[int]) -> Value:
    """Return a value of which nothing may be cut."""
    return unknown([(Factor(size),) for size in shape])


def with_axis(value: Value, dim: int, axis: Axis, const: Array) -> Value:
    """Return a value with another axis in one's place, along which alone it is known.

    Args:
        value: the value.
        dim: which of its axes.
        axis: what stands there instead.
        const: the constant at each index of the new axis, shape (size,) or (1,).
    """
    axes = (*value.axes[:dim], axis, *value.axes[dim + 1 :])
    sizes = [1] * sum(map(len, axes))
    if const.size != 1:  # of an empty part it is empty
        first = sum(map(len, axes[:dim]))
        sizes[first : first + len(axis)] = [factor.size for factor in axis]
    return Value(axes, const.reshape(sizes))


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

    def fixed(self, size: int) -> int:
        """Return a size without its symbols.

        Example:
            >>> sizes = Sizes()
            >>> sizes.fixed(*sizes.of(["8*s0"]))
            8
        """
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
