"""Times of several calls, measured in turns, so that what slows the machine slows all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Call = Callable[[], object]

FEWEST_ROUNDS = 5


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


@dataclass(frozen=True)
class Times:
    """Seconds of each call, one for each round.

    Args:
        seconds: by the call's name.
    """

    seconds: Mapping[str, list[float]]

    @property
    def rounds(self) -> int:
        """How many times each call was measured."""
        return len(next(iter(self.seconds.values())))

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
    slot: float = 0.02,
    clock: Callable[[], float] = time.process_time,
) -> Times:
    """Time calls in rounds of one short slot each, until the time is up.

    The order of each round is drawn anew, so that none always runs after the same one, and each
    slot begins with a call that is not timed, which finds the caches as another left them.

    Args:
        calls: by name.
        seconds: about how long to measure; a few rounds are run however short it is.
        slot: about how many seconds of calls a slot holds, at least one call.
        clock: process_time does not count the time in which others have the core.
    """
    repeats = {name: _repeats(call, slot, clock) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() < end:
        for name in order.sample(list(calls), len(calls)):
            times[name].append(_slot(calls[name], repeats[name], clock))
        rounds += 1
    return Times(times)


def _repeats(call: Call, slot: float, clock: Callable[[], float]) -> int:
    """Warm a call up, and return how many of it fill a slot."""
    for _ in range(3):
        call()
    return max(1, round(slot / max(_slot(call, 3, clock), 1e-6)))


def _slot(call: Call, repeats: int, clock: Callable[[], float]) -> float:
    call()
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats
