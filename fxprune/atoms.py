"""Atoms: one for each channel of each axis; what ties them, and what pins them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch.fx.node import Node

from fxprune.factors import Ids

__all__ = ["Atoms", "Pin"]


@dataclass(frozen=True)
class Pin:
    """Why some atoms stay.

    Args:
        atoms: which.
        reason: one clause.
        node: the node that needs them.
    """

    atoms: Ids
    reason: str
    node: Node | None


class Atoms:
    """A growing set of atoms with ties between them."""

    def __init__(self) -> None:
        self.count = 0
        self.pins: list[Pin] = []
        self._left: list[Ids] = []
        self._right: list[Ids] = []

    def fresh(self, count: int) -> Ids:
        """Return atoms that are tied to nothing."""
        self.count += count
        return np.arange(self.count - count, self.count, dtype=np.int64)

    def tie(self, left: Ids, right: Ids) -> None:
        """Let atoms go together, one by one.

        Args:
            left: any shape.
            right: of a shape that broadcasts to it.
        """
        if left is right:
            return
        left, right = np.broadcast_arrays(left, right)
        self._left.append(left.reshape(-1))
        self._right.append(right.reshape(-1))

    def pin(self, atoms: Ids | None, reason: str, node: Node | None) -> None:
        """Let atoms stay."""
        if atoms is not None and atoms.size:
            self.pins.append(Pin(np.unique(atoms), reason, node))

    def components(self) -> Ids:
        """Return, for each atom, the least atom that it is tied to, directly or through others.

        Labels are hooked to smaller ones and shortened until no tie joins two of them (Shiloach
        and Vishkin, 1982), whole arrays at a time.
        """
        labels = np.arange(self.count, dtype=np.int64)
        if not self._left:
            return labels
        left, right = np.concatenate(self._left), np.concatenate(self._right)
        while True:
            a, b = labels[left], labels[right]
            if np.array_equal(a, b):
                return labels
            least = np.minimum(a, b)
            np.minimum.at(labels, a, least)
            np.minimum.at(labels, b, least)
            while not np.array_equal(labels, labels[labels]):
                labels = labels[labels]
