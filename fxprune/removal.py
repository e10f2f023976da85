"""Which atoms go: those of components that nothing pins, but never a whole axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune.atoms import Atoms, Pin
from fxprune.factors import Factor, Ids, Value

__all__ = ["Removal", "removal_of"]

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Removal:
    """Which atoms go.

    Args:
        labels: the component of each atom, named by its least atom.
        gone: for each atom, whether it goes.
        pins: why atoms stay, in the order in which that was found.
    """

    labels: Ids
    gone: Bools
    pins: tuple[Pin, ...]

    def kept(self, atoms: Ids) -> Bools:
        """Return which of some atoms stay."""
        return ~self.gone[atoms]

    def touches(self, atoms: Ids | None) -> bool:
        """Tell whether any of some atoms goes."""
        return atoms is not None and bool(self.gone[atoms].any())


def removal_of(atoms: Atoms, values: Iterable[Value], *, round_to: int = 1) -> Removal:
    """Decide which atoms go.

    Args:
        atoms: with all ties and pins.
        values: all values through which they flow; of none does an axis vanish.
        round_to: what is left of an axis that loses channels is a multiple of this, if it can be.
    """
    labels = atoms.components()
    stays = np.zeros(atoms.count, dtype=np.bool_)
    for pin in atoms.pins:
        stays[labels[pin.atoms]] = True
    factors = _distinct(values)
    for factor in factors:
        if factor.atoms is not None and not stays[labels[factor.atoms]].any():
            stays[labels[factor.atoms[:1]]] = True
    if round_to > 1:
        _round_up(factors, labels, stays, round_to)
    return Removal(labels, ~stays[labels], tuple(atoms.pins))


def _distinct(values: Iterable[Value]) -> list[Factor]:
    found: dict[int, Factor] = {}
    for value in values:
        for factor in value.factors:
            if factor.atoms is not None and factor.atoms.size:
                found[id(factor.atoms)] = factor
    return list(found.values())


def _round_up(factors: list[Factor], labels: Ids, stays: Bools, round_to: int) -> None:
    """Let more components stay until each axis has a multiple of channels, or all of them."""
    again = True
    while again:
        again = False
        for factor in factors:
            roots = labels[factor.atoms]
            kept = int(stays[roots].sum())
            missing = min(-kept % round_to, len(roots) - kept)
            for _ in range(missing):
                left = np.flatnonzero(~stays[roots])
                if not len(left):
                    break
                stays[roots[left[0]]] = True
                again = True
