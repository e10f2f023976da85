"""Which atoms go: those of components that nothing pins, but never a whole axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fxprune.channels.atoms import LIVE, Atoms, Pin, WeightRead
from fxprune.channels.values import Bools, Ids, Value

_LAST = "one channel at least must be left"


@dataclass(frozen=True)
class Removal:
    """Which atoms go."""

    labels: Ids  # the component of each atom, named by its least atom
    gone: Bools  # of each atom
    pins: tuple[Pin, ...]  # in the order in which they were found
    first: Ids  # for each atom, the first pin of its component; -1 for none
    again: bool = False  # whether more may go when the channels are found once more after the cut
    _looks: dict[int, tuple[Ids, Bools, bool]] = field(
        default_factory=dict[int, tuple[Ids, Bools, bool]], init=False, repr=False, compare=False
    )

    def kept(self, atoms: Ids) -> Bools:
        """Return which of some atoms stay."""
        return self._look(atoms)[1]

    def touches(self, atoms: Ids | None) -> bool:
        """Tell whether any of some atoms goes."""
        return atoms is not None and self._look(atoms)[2]

    def _look(self, atoms: Ids) -> tuple[Ids, Bools, bool]:
        """Return some atoms, which of them stay, and whether any goes; asked for many times."""
        found = self._looks.get(id(atoms))
        if found is None:
            kept = ~self.gone[atoms]
            # The atoms are held, so that no other array gets their id.
            found = self._looks[id(atoms)] = (atoms, kept, not bool(kept.all()))
        return found

    def reasons(self, atoms: Ids) -> list[tuple[Pin, int]]:
        """Return why some atoms stay: pins, with how many of the atoms each is the first for."""
        first = self.first[atoms]
        pairs = zip(*np.unique(first[first >= 0], return_counts=True), strict=True)
        return [(self.pins[at], int(count)) for at, count in pairs]


def removal_of(
    atoms: Atoms, stored: Iterable[Value], computed: Iterable[Value], *, round_to: int = 1
) -> Removal:
    """Decide which atoms go; no factor of any value loses all channels.

    What is left of a stored axis that loses channels is a multiple of `round_to`, if it can be.
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
        _keep_what_is_read(atoms, labels, stays)
        again = _keep_last(atoms, every, labels, stays) or _keep_two(atoms, labels, stays)
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


def _keep_what_is_read(atoms: Atoms, labels: Ids, stays: Bools) -> None:
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


def _is_read(read: WeightRead, labels: Ids, stays: Bools) -> Bools:
    if read.rows is None:
        return read.harmful & read.weights.read
    return read.harmful & read.weights.read_by(stays[labels[read.rows]])


def _keep_last(atoms: Atoms, axes: list[Ids], labels: Ids, stays: Bools) -> bool:
    """Let one component of each axis stay that would lose all; tell whether there was one."""
    found = False
    for ids in axes:
        if not stays[labels[ids]].any():
            stays[labels[ids[:1]]] = True
            atoms.pin(ids[:1], _LAST, None)
            found = True
    return found


def _keep_two(atoms: Atoms, labels: Ids, stays: Bools) -> bool:
    """Let a second component stay where an axis must not have size 1."""
    found = False
    for ids, node in atoms.wide:
        kept = stays[labels[ids]]
        if len(ids) > 1 and int(kept.sum()) == 1:
            second = ids[~kept][:1]
            stays[labels[second]] = True
            atoms.pin(second, "it would drop an axis with one channel left", node)
            found = True
    return found


def _distinct(values: Iterable[Value]) -> list[Ids]:
    every = (factor.atoms for value in values for factor in value.factors)
    return list({id(ids): ids for ids in every if ids is not None and ids.size}.values())


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
