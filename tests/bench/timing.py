"""Times of several calls, measured in turns, so that what slows the machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Ratio", "Times", "measure"]

Call = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times over many rounds.

    Args:
        median: of the rounds' ratios.
        low: the first quartile.
        high: the third quartile.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Times:
    """Seconds of each call, one for each round.

    Args:
        seconds: by the call's name.
    """

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Return the median of a call's seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> Ratio:
        """Return how long one call takes, measured in the time of another of the same round."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        low, median, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        return Ratio(median, low, high)


def measure(
    calls: Mapping[str, Call],
    *,
    seconds: float,
    slot: float = 0.01,
    clock: Callable[[], float] = time.process_time,
) -> Times:
    """Time calls in rounds of one short slot each, until the time is up.

    The first round warms up and is dropped. Each round begins with another call, so that none
    always runs after the same one.

    Args:
        calls: by name.
        seconds: about how long to measure, at least four rounds.
        slot: about how many seconds of calls a slot holds, at least one call.
        clock: process_time does not count the time in which others have the core.
    """
    repeats = {name: _repeats(call, slot, clock) for name, call in calls.items()}
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[names[0]]) < 4:
        for name in names:
            times[name].append(_slot(calls[name], repeats[name], clock))
        names.append(names.pop(0))
    return Times(times)


def _repeats(call: Call, slot: float, clock: Callable[[], float]) -> int:
    """Warm a call up, and return how many of it fill a slot."""
    for _ in range(3):
        call()
    return max(1, round(slot / max(_slot(call, 3, clock), 1e-6)))


def _slot(call: Call, repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats
