"""Symbolic sizes as numbers: each symbol is a large prime, so that views are plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["OPEN", "Sizes"]

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
