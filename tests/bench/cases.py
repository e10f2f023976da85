"""One case of the benchmark, a model at a batch size, and the limits that cases are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from tests.bench.memory import peak_bytes
from tests.bench.models import Forms
from tests.bench.timing import Ratio, measure

# What is measured in the time of what.
PAIRS = (
    ("hooked", "dense"),
    ("masked", "hooked"),
    ("masked", "dense"),
    ("final", "hooked"),
    ("final", "dense"),
)


@dataclass(frozen=True)
class Case:
    """What was measured of a model at a batch size.

    Args:
        model: its name.
        batch: how many inputs a call takes.
        rounds: how many times each form was measured.
        seconds: of one call, the median, by form.
        ratios: of times, by "form/form".
        peak: bytes that a call allocates at most, by form.
    """

    model: str
    batch: int
    rounds: int
    seconds: dict[str, float]
    ratios: dict[str, Ratio]
    peak: dict[str, int]

    def memory(self, form: str, base: str) -> float:
        """Return the peak of one form in that of another."""
        return self.peak[form] / self.peak[base]


@dataclass(frozen=True)
class Limit:
    """A limit and what was measured; the median is what counts.

    Args:
        name: what is limited.
        limit: the largest ratio allowed.
        measured: the ratio.
    """

    name: str
    limit: float
    measured: Ratio

    @property
    def met(self) -> bool:
        """Whether the limit holds."""
        return self.measured.median <= self.limit

    def __str__(self) -> str:
        found = self.measured
        ratio = f"{found.median:.3f} ({found.low:.3f}-{found.high:.3f})"
        return f"{self.name}: {ratio}, limit {self.limit}: {'met' if self.met else 'not met'}"


def measure_case(
    name: str, forms: Forms, batch: int, seconds: float, clock: Callable[[], float]
) -> Case:
    """Measure a model's forms at a batch size.

    Args:
        name: of the model.
        forms: the model.
        batch: the batch size.
        seconds: about how long to measure.
        clock: what time is read from.
    """
    x = forms.inputs(batch)
    calls = {form: partial(module, x) for form, module in forms.modules.items()}
    with torch.no_grad():
        times = measure(calls, seconds=seconds, clock=clock)
    peak = {
        form: peak_bytes(module, x, [*module.parameters(), *module.buffers()])
        for form, module in forms.modules.items()
    }
    return Case(
        model=name,
        batch=batch,
        rounds=times.rounds,
        seconds={form: times.median(form) for form in calls},
        ratios={f"{a}/{b}": times.ratio(a, b) for a, b in PAIRS},
        peak=peak,
    )


def limits_of(cases: list[Case]) -> list[Limit]:
    """Return the limits of masked Programs at batch 1 and of finalized ones at any."""
    limits = [_limit(case, "masked/hooked", 0.95) for case in cases if case.batch == 1]
    return limits + [_limit(case, "final/dense", 1.03) for case in cases]


def _limit(case: Case, pair: str, limit: float) -> Limit:
    name = f"{pair}, {case.model}, batch {case.batch}"
    return Limit(name, limit, case.ratios[pair])
