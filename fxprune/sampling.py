"""Which scores are sampled: short runs, spread evenly, without asking a generator."""

from __future__ import annotations

import torch

__all__ = ["indices_of", "starts_of"]

_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, fill the interval evenly (Weyl, 1916)
_RUN = 16  # neighbours that share a cache line are read for the price of one


def starts_of(units: int, stride: int) -> torch.Tensor:
    """Return one place in each stride, no two an even distance apart, as rows are.

    Args:
        units: how many there are.
        stride: units to a place.

    Returns:
        int64 on the CPU, each under `units`.

    Example:
        >>> starts_of(1000, 250)
        tensor([  0, 377, 504, 881])
    """
    at = torch.arange(0, units, stride)
    within = (stride * (at.double() * _GOLDEN % 1)).long()
    return (at + within).clamp_(max=units - 1)


def indices_of(units: int, step: int) -> torch.Tensor:
    """Return about one unit in `step`, in runs of neighbours.

    Args:
        units: how many there are.
        step: units to each one that is sampled.

    Returns:
        int64 on the CPU, each under `units`; some may be there twice.

    Example:
        >>> indices_of(1000, 30)[14:18]
        tensor([ 14,  15, 795, 796])
    """
    run = min(_RUN, units)
    starts = starts_of(units, step * _RUN).clamp_(max=units - run)
    return (starts[:, None] + torch.arange(run)).view(-1)
