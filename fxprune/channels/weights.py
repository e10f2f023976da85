"""Stored weights as channels see them: which rows are not 0, and which channels are read at all."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch

from fxprune.channels.values import Bools


class Weights:
    """Where stored weights of shape (rows, channels, ...) are not 0.

    One pass finds the rows (`full`) and the channels (`read`) that are not 0 throughout. What masks
    leave is mostly told by these two; only where it is not, the weights are looked at again, one by
    one.

    Example:
        >>> weights = Weights(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0]]))
        >>> weights.full.tolist(), weights.read.tolist()
        ([True, False, True], [True, True, False])
        >>> weights.read_by(np.array([False, True, True])).tolist()
        [False, True, False]
        >>> weights.readers(np.array([True, False, False])).tolist()
        [True, False, False]
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight
        self._rows, self._channels = weight.shape[:2]
        if weight.numel() and not any(weight.stride()):
            # One number in all places, as where a tensor is taken for zeros.
            one = bool(weight[(0,) * weight.dim()] != 0)
            self.full: Bools = np.full(self._rows, one)
            self.read: Bools = np.full(self._channels, one)
            return
        read = self._entries()
        self.full = _any(read, 1)
        self.read = self._by_channel(_any(read, 0))

    def read_by(self, rows: Bools) -> Bools:
        """Return which channels any of some rows reads."""
        if rows[self.full].all():
            return self.read
        return self._by_channel(_any(self._each[rows], 0))

    def readers(self, channels: Bools) -> Bools:
        """Return which rows read any of some channels."""
        if channels[self.read].all():
            return self.full
        there = np.repeat(channels, math.prod(self._weight.shape[2:]))
        return _any(self._each[:, there], 1)

    @cached_property
    def _each(self) -> Bools:
        return self._entries()

    def _entries(self) -> Bools:
        columns = math.prod(self._weight.shape[1:])
        return nonzero(self._weight).reshape(self._rows, columns)

    def _by_channel(self, columns: Bools) -> Bools:
        return _any(columns.reshape(self._channels, math.prod(self._weight.shape[2:])), 1)


def _any(entries: Bools, axis: int) -> Bools:
    return np.asarray(entries.any(axis=axis), dtype=np.bool_)


def nonzero(weight: torch.Tensor) -> Bools:
    """Return which weights are not 0: numpy is ten times faster than torch at it."""
    try:
        return np.asarray(weight.detach().cpu().numpy() != 0)
    except TypeError:  # a dtype that numpy does not have
        return weight.ne(0).cpu().numpy()
