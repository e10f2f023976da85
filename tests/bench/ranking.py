"""Measure global magnitude pruning against torch.nn.utils.prune.global_unstructured.

    python -m tests.bench.ranking --sizes 1M 25M --amounts 0.5 --dtypes float32 --rounds 5

Every figure is the median over rounds in which all forms take turns in one process. Extra bytes
are the growth of the peak resident set during the call, without what the call leaves behind.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.passes import magnitude
from fxprune.passes.magnitude import MagnitudeScores
from fxprune.ranking import magnitudes
from fxprune.ranking.kth import cut_group
from fxprune.rewrite.units import Entries

SIZES = {"1M": 1, "25M": 24, "86M": 82, "353M": 337}  # layers of 1024 x 1024
WIDTH = 1024
FORMS = ("torch", "bare", "rank, torch ops", "rank", "prune", "copying")


@dataclass(frozen=True)
class Case:
    """What was measured for one size, amount and dtype.

    Args:
        size: as asked for.
        amount: share to prune.
        dtype: of the weights.
        numel: how many weights.
        seconds: by form, one a round.
        extra: bytes a weight beside what a call leaves behind, by form.
    """

    size: str
    amount: float
    dtype: str
    numel: int
    seconds: dict[str, list[float]]
    extra: dict[str, float]

    def median(self, form: str) -> float:
        """Return a form's median seconds."""
        return statistics.median(self.seconds[form])

    def speed(self, form: str) -> float:
        """Return how many times faster than torch a form is, the median over the rounds."""
        pairs = zip(self.seconds["torch"], self.seconds[form], strict=True)
        return statistics.median(base / own for base, own in pairs)


def layers_of(size: str, dtype: torch.dtype) -> list[nn.Linear]:
    """Build layers with normal weights."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype) for _ in range(SIZES[size])]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=0.02)
    return layers


def calls_of(
    layers: list[nn.Linear], amount: float, clock: Callable[[], float]
) -> dict[str, Callable[[], tuple[float, object]]]:
    """Return what each form does, as calls that time themselves without their preparation."""
    example = torch.zeros(2, WIDTH, dtype=layers[0].weight.dtype)
    program = fxprune.capture(nn.Sequential(*layers), (example,))
    weights = [layer.weight.detach() for layer in layers]
    k = round(amount * sum(w.numel() for w in weights))
    rule = {"select": "*", "method": "l1_unstructured", "scope": "global", "amount": amount}
    recipe = {"rule": [rule]}

    def timed(call: Callable[[], object]) -> tuple[float, object]:
        start = clock()
        found = call()
        return clock() - start, found

    def base() -> tuple[float, object]:
        pairs = [(layer, "weight") for layer in copy.deepcopy(layers)]
        method = torch_prune.L1Unstructured
        took = timed(lambda: torch_prune.global_unstructured(pairs, method, amount=amount))[0]
        return took, pairs

    def rank(bits: bool) -> tuple[float, object]:
        found = magnitudes.can_scan if bits else (lambda tensor: False)
        with patch.object(magnitude, "can_scan", found):
            sources = {f"{i}": MagnitudeScores(Entries(w, None)) for i, w in enumerate(weights)}
            return timed(lambda: cut_group(sources, k, all_ties=False))

    def in_place() -> tuple[float, object]:
        own = copy.deepcopy(program)
        return timed(lambda: fxprune.prune(own, recipe, inplace=True))

    return {
        "torch": base,
        "bare": lambda: timed(lambda: [torch.gt(w, 0.0135) for w in weights]),
        "rank, torch ops": lambda: rank(False),
        "rank": lambda: rank(True),
        "prune": in_place,
        "copying": lambda: timed(lambda: fxprune.prune(program, recipe)),
    }


def extra_of(call: Callable[[], tuple[float, object]], numel: int) -> float:
    """Return the bytes a weight by which the resident set peaks over what the call leaves."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    kept = call()
    peak = _status("VmHWM")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    after = _status("VmRSS")
    del kept
    return (peak - after) / numel


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(size: str, amount: float, dtype: str, rounds: int, clock: Any) -> Case:
    """Measure one case."""
    layers = layers_of(size, getattr(torch, dtype))
    numel = sum(layer.weight.numel() for layer in layers)
    calls = calls_of(layers, amount, clock)
    seconds: dict[str, list[float]] = {form: [] for form in calls}
    for _ in range(rounds):
        for form, call in calls.items():
            gc.collect()
            seconds[form].append(call()[0])
    extra = {form: extra_of(call, numel) for form, call in calls.items()}
    return Case(size, amount, dtype, numel, seconds, extra)


def table_of(cases: Sequence[Case]) -> Table:
    """Return the figures as a table."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("size", "amount", "dtype", "torch s", *(f"{form} x" for form in FORMS[1:])):
        table.add_column(title, justify="right", no_wrap=True)
    for form in ("torch", "rank", "prune"):
        table.add_column(f"{form} B/param", justify="right")
    for case in cases:
        speeds = (f"{case.speed(form):.1f}" for form in FORMS[1:])
        extra = (f"{case.extra[form]:.2f}" for form in ("torch", "rank", "prune"))
        base = f"{case.median('torch'):.2f}"
        table.add_row(case.size, f"{case.amount}", case.dtype, base, *speeds, *extra)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; write the JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ranking", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["1M", "25M", "86M"], choices=SIZES)
    parser.add_argument("--amounts", nargs="+", type=float, default=[0.2, 0.5, 0.9])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    console, cases = Console(), list[Case]()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")
        for size in options.sizes:
            for dtype in options.dtypes:
                for amount in options.amounts:
                    progress.update(task, description=f"{size} {dtype} {amount}")
                    cases.append(measure(size, amount, dtype, options.rounds, clock))
    console.print(
        f"torch {torch.__version__}, threads {options.threads}, time by {clock.__name__}, "
        f"load {os.getloadavg()[0]:.1f}, medians of {options.rounds} rounds\n"
        "x: times faster than torch.nn.utils.prune.global_unstructured",
        highlight=False,
    )
    console.print(table_of(cases))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(case) for case in cases], indent=2) + "\n")


if __name__ == "__main__":
    main()
