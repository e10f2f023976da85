"""How large a Program is and what it costs, and how long it takes beside another one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.drawing import example_of
from fxprune.flops import costs_of
from fxprune.program import Program
from fxprune.shrink_record import Footprint
from fxprune.transaction import fork

__all__ = ["Footprint", "Latency", "footprint_of", "latency_of"]

_ROUNDS = 5


@dataclass(frozen=True)
class Latency:
    """How long a forward takes, in eval mode without gradients.

    Args:
        batch: the size of every symbolic dimension.
        before: seconds, the median.
        after: seconds, the median, measured in turns with the other.
        rounds: how often each was run.
        threads: how many threads torch used.
    """

    batch: int
    before: float
    after: float
    rounds: int
    threads: int

    def __str__(self) -> str:
        return (
            f"batch {self.batch}: {1e3 * self.before:.3g} ms -> {1e3 * self.after:.3g} ms "
            f"({self.before / max(self.after, 1e-12):.2f} times as fast; medians of {self.rounds} "
            f"rounds, {self.threads} {'thread' if self.threads == 1 else 'threads'})"
        )


def footprint_of(program: Program) -> Footprint:
    """Count parameters, operations and activations.

    Args:
        program: not changed.

    Example:
        >>> from fxprune.compiler import capture
        >>> found = footprint_of(capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),)))
        >>> found.parameters, found.flops, found.activations
        (8, 12, 2)
    """
    costs = costs_of(program)
    return Footprint(
        parameters=sum(p.numel() for p in program.parameters()),
        flops=costs.flops,
        activations=costs.activations,
        layers={row.node: row.flops for row in costs.rows},
        unknown=costs.unknown,
    )


def latency_of(
    after: Program, before: Program, *, batch: int = 1, seconds: float = 0.5
) -> Latency | None:
    """Measure forwards of two Programs in turns.

    Args:
        after: a Program.
        before: another one with the same inputs.
        batch: the size of every symbolic dimension.
        seconds: about how long to measure; a few rounds are run however short it is.

    Returns:
        Medians; None where no input can be drawn, or the drawn one does not run.
    """
    if not before.captured.inputs.drawable:
        return None
    # Forks have training flags of their own, over the same tensors.
    pair = fork(before).eval(), fork(after).eval()
    args, kwargs = example_of(before, batch=batch)
    try:
        with torch.no_grad():
            return _measured(*pair, args, kwargs, batch=batch, seconds=seconds)
    except (RuntimeError, ValueError, IndexError):
        return None


def _measured(
    before: nn.Module, after: nn.Module, args: Any, kwargs: Any, *, batch: int, seconds: float
) -> Latency:
    times: tuple[list[float], list[float]] = ([], [])
    calls = [lambda: before(*args, **kwargs), lambda: after(*args, **kwargs)]
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    while len(times[0]) < _ROUNDS or time.perf_counter() < end:
        for call, taken in zip(calls, times, strict=True):
            taken.append(_timed(call))
    medians = [statistics.median(taken) for taken in times]
    return Latency(batch, medians[0], medians[1], len(times[0]), torch.get_num_threads())


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
