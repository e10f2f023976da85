"""Which atoms go: those of components that nothing pins, but never a whole axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fxprune.atoms import LIVE, Atoms, Pin, Read
from fxprune.factors import Bools, Factor, Ids, Value

__all__ = ["Removal", "removal_of"]

_LAST = "one channel at least must be left"


@dataclass(frozen=True)
class Removal:
    """Which atoms go.

    Args:
        labels: the component of each atom, named by its least atom.
        gone: for each atom, whether it goes.
        pins: why atoms stay, in the order in which that was found.
        first: for each atom, the first of the pins that its component has; -1 for none.
        again: whether more may go when the channels are found once more after the cut.
    """

    labels: Ids
    gone: Bools
    pins: tuple[Pin, ...]
    first: Ids
    again: bool = False

    def kept(self, atoms: Ids) -> Bools:
        """Return which of some atoms stay."""
        return ~self.gone[atoms]

    def touches(self, atoms: Ids | None) -> bool:
        """Tell whether any of some atoms goes."""
        return atoms is not None and bool(self.gone[atoms].any())

    def reasons(self, atoms: Ids) -> list[tuple[Pin, int]]:
        """Return why some atoms stay: pins, with how many of the atoms each is the first for."""
        found, counts = np.unique(self.first[atoms], return_counts=True)
        pairs = zip(found.tolist(), counts.tolist(), strict=True)
        return [(self.pins[at], count) for at, count in pairs if at >= 0]


def removal_of(
    atoms: Atoms, stored: Iterable[Value], computed: Iterable[Value], *, round_to: int = 1
) -> Removal:
    """Decide which atoms go.

    Args:
        atoms: with all ties and pins.
        stored: values of the tensors that are cut.
        computed: all other values; no factor of any value loses all channels.
        round_to: what is left of a stored axis that loses channels is a multiple of this, if it
            can be.
    """
    labels = atoms.components()
    stays = np.zeros(atoms.count, dtype=np.bool_)
    for pin in atoms.pins:
        stays[labels[pin.atoms]] = True
    own = _distinct(stored)
    # Short ones first: what is left of a part is left of the whole.
    every = sorted([*own, *_distinct(computed)], key=len)
    again = True
    while again:
        _let_readers_keep(atoms, labels, stays)
        again = _keep_last(atoms, every, labels, stays)
        again = again or (round_to > 1 and _round_up(atoms, own, labels, stays, round_to))
    for read in atoms.reads:
        atoms.pin(read.channels[_is_read(read, labels, stays)], LIVE, read.node)
    first = np.full(atoms.count, -1, dtype=np.int64)
    for at in reversed(range(len(atoms.pins))):
        first[labels[atoms.pins[at].atoms]] = at
    kept = stays[labels]
    # Of a part with one channel another part can be cut; a branch may be constant in what is left.
    again = any(len(ids) > 1 and int(kept[ids].sum()) == 1 for ids in atoms.splits)
    again = again or any(pin.reason == _LAST for pin in atoms.pins)
    return Removal(labels, ~kept, tuple(atoms.pins), first[labels], again)


def _let_readers_keep(atoms: Atoms, labels: Ids, stays: Bools) -> None:
    """Let stay what an output that stays reads, from the last layer to the first."""
    again = True
    while again:
        again = False
        for read in reversed(atoms.reads):
            roots = labels[read.channels]
            if stays[roots].all():
                continue
            live = roots[_is_read(read, labels, stays)]
            if not stays[live].all():
                stays[live] = True
                again = True


def _is_read(read: Read, labels: Ids, stays: Bools) -> Bools:
    weights = read.weights
    if read.rows is not None:
        rows = stays[labels[read.rows]]
        weights = weights if rows.all() else weights[rows]
    columns = weights.any(axis=0, keepdims=True)
    each = np.asarray(columns, dtype=np.bool_).reshape(weights.shape[1], -1)
    return read.harmful & np.asarray(each.any(axis=1), dtype=np.bool_)


def _keep_last(atoms: Atoms, axes: list[Ids], labels: Ids, stays: Bools) -> bool:
    """Let one component of each axis stay that would lose all; tell whether there was one."""
    found = False
    for ids in axes:
        if not stays[labels[ids]].any():
            stays[labels[ids[:1]]] = True
            atoms.pin(ids[:1], _LAST, None)
            found = True
    return found


def _distinct(values: Iterable[Value]) -> list[Ids]:
    found: dict[int, Factor] = {}
    for value in values:
        for factor in value.factors:
            if factor.atoms is not None and factor.atoms.size:
                found[id(factor.atoms)] = factor
    return [factor.atoms for factor in found.values() if factor.atoms is not None]


def _round_up(atoms: Atoms, axes: list[Ids], labels: Ids, stays: Bools, round_to: int) -> bool:
    """Let more stay until each axis has a multiple of channels, or all; tell whether any does."""
    found = False
    for ids in axes:
        roots = labels[ids]
        kept = stays[roots]
        missing = -int(kept.sum()) % round_to
        # Of the components that could go, as many as have about so many channels here.
        dead, counts = np.unique(roots[~kept], return_counts=True)
        more = dead[np.cumsum(counts) - counts < missing]
        if more.size:
            stays[more] = True
            atoms.pin(more, f"channels are kept in multiples of {round_to}", None)
            found = True
    return found
