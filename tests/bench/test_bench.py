"""The benchmark's instruments: memory to the byte, ratios by a clock that the test sets."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from rich.console import Console

from tests.bench.cases import Case, limits_of, measure_case
from tests.bench.memory import peak_bytes
from tests.bench.models import FORMS, MODELS, forms_of
from tests.bench.output import page, to_json
from tests.bench.timing import FEWEST_ROUNDS, Ratio, Times, measure

pytestmark = pytest.mark.thorough  # measures

KIB = torch.ones(256)  # float32: 1024 bytes
SETUP = {"torch": "0", "threads": 1, "clock": "process_time", "load": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("call", "blocks"),
    [
        pytest.param(lambda x: x.view(2, 128), 0, id="a view is free"),
        pytest.param(lambda x: x.mul_(2), 0, id="in place is free"),
        pytest.param(lambda x: x + 1, 1, id="one result"),
        pytest.param(lambda x: (x + 1) + 1, 2, id="one lives while the next is made"),
        pytest.param(lambda x: ((x + 1) + 1) + 1, 2, id="what is dropped does not count on"),
        pytest.param(lambda x: torch.cat([x + 1, x + 2]), 4, id="two, and both once more"),
    ],
)
def test_peak_counts_what_lives_at_once(call, blocks: int):
    x = KIB.clone()
    assert peak_bytes(call, x, []) == blocks * 1024
    assert peak_bytes(call, x, []) == blocks * 1024


def test_peak_leaves_out_what_was_there():
    model = torch.nn.Linear(256, 256)
    assert peak_bytes(lambda x: model.weight.view(-1), KIB, list(model.parameters())) == 0


def test_ratios_are_those_of_the_same_round():
    times = Times({"a": [1.0, 20.0, 3.0], "b": [2.0, 40.0, 6.0]})
    assert times.ratio("a", "b") == Ratio(0.5, 0.5, 0.5)
    assert times.median("a") == 3.0
    assert times.rounds == 3


def test_each_call_is_measured_in_each_round():
    ticks = itertools.count()
    calls = {"a": lambda: None, "b": lambda: None}
    times = measure(calls, seconds=0, slot=4, clock=lambda: float(next(ticks)))
    # Three calls take one tick while warming up, so a slot of 4 ticks holds 12 calls.
    assert times.seconds == {name: [1 / 12] * FEWEST_ROUNDS for name in calls}


def test_a_limit_says_whether_it_is_met():
    low, high = Ratio(0.9, 0.8, 1.0), Ratio(1.04, 1.0, 1.1)
    case = Case("net", 1, 5, {}, {"masked/hooked": low, "final/dense": high}, {})
    assert list(map(str, limits_of([case]))) == [
        "masked/hooked, net, batch 1: 0.900 (0.800-1.000), limit 0.95: met",
        "final/dense, net, batch 1: 1.040 (1.000-1.100), limit 1.03: not met",
    ]


@pytest.mark.parametrize("name", MODELS)
def test_masked_forms_take_less_memory_than_hooked_ones(name: str):
    forms = forms_of(name)
    case = measure_case(name, forms, 1, seconds=0, clock=itertools.count().__next__)
    assert list(case.peak) == list(FORMS)
    assert case.memory("masked", "hooked") < 0.5
    assert case.memory("final", "dense") <= 1.0
    assert json.loads(to_json([case], SETUP))["cases"][0]["peak"] == case.peak
    console = Console(width=80)
    with console.capture() as printed:
        console.print(*page([case], SETUP))
    assert "…" not in printed.get()
    assert name in printed.get()
