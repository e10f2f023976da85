"""Measure coupled pruning and shrink beside Torch-Pruning, on hand-written vision models.

    python -m tests.bench.shrink --rounds 5 --json shrink.json

Both sides halve the channels of every layer by L2 norm. Torch-Pruning's init and step are timed
beside the analysis and the cut of the masked Program, in turns in one process; the Program's
capture, once a model, has a column of its own, and so has all that fxprune does after it. Without
torch-pruning installed its columns stay empty.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxprune
from fxprune.flops import costs_of
from fxprune.program import Program
from fxprune.shrinking import cut_channels, shrink
from fxprune.transaction import fork
from tests.bench.models_vision import VISION, densenet201
from tests.bench.timing import measure

__all__ = ["Case", "measure_model", "peer"]

PEER = "torch-pruning==1.6.1"
MODELS = {**VISION, "densenet201": densenet201}
BATCHES = (1, 8)
RECIPE: dict[str, Any] = {
    "rule": [
        {
            "select": {"op": ["conv2d", "linear"], "role": "weight"},
            "method": "ln_structured",
            "n": 2,
            "amount": 0.5,
            "coupled": True,
        }
    ]
}


@dataclass(frozen=True)
class Side:
    """What one side made of a model.

    Args:
        parameters: how many are left.
        convolutions: the share of the entries of 4-dimensional weights that is left.
        flops: of one example; None where they cannot be counted.
        seconds: of analysis and cut, or of init and step; the median over the rounds.
        latency: seconds of a forward by batch.
    """

    parameters: int
    convolutions: float
    flops: int | None
    seconds: float
    latency: dict[int, float]


@dataclass(frozen=True)
class Case:
    """One model, on both sides.

    Args:
        model: its name.
        parameters: of the dense model.
        flops: of the dense model, one example.
        latency: of the dense model.
        capture: seconds of the capture.
        whole: seconds of all after it: masks, finalize, shrink with its checks.
        difference: the largest difference from the masked model, in float64 on float64 weights.
        own: what fxprune made.
        peer: what Torch-Pruning made; None where it is not installed.
        ratio: the peer's seconds in ours, the median of the rounds.
        rounds: how many rounds both were timed.
    """

    model: str
    parameters: int
    flops: int
    latency: dict[int, float]
    capture: float
    whole: float
    difference: float
    own: Side
    peer: Side | None
    ratio: float | None
    rounds: int


def peer() -> Any:
    """Return Torch-Pruning; None where it is not installed."""
    try:
        return importlib.import_module("torch_pruning")
    except ImportError:
        return None


def measure_model(name: str, *, size: int, rounds: int, seconds: float) -> Case:
    """Measure one model.

    Args:
        name: of `MODELS`.
        size: of the images, in pixels.
        rounds: how often analysis and cut are timed.
        seconds: how long forwards are timed, a batch size.
    """
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.randn(2, 3, size, size)
    start = time.process_time()
    program = fxprune.capture(model, (x,)).eval()
    captured = time.process_time() - start
    start = time.process_time()
    masked = fxprune.prune(program, RECIPE)
    final = fxprune.finalize(masked)
    small = shrink(final)
    whole = time.process_time() - start
    pruned = _pruned_by_peer(model, x[:1]) if peer() is not None else None
    own, other = _cut_times(final, model, x[:1], rounds)
    forwards = _latencies(program, small, pruned, size, seconds)
    theirs = None if pruned is None else _side(pruned, model, x[:1], other, forwards["peer"])
    return Case(
        model=name,
        parameters=_count(model),
        flops=costs_of(program).flops,
        latency=forwards["dense"],
        capture=captured,
        whole=whole,
        difference=_difference(masked, x),
        own=_side(small, model, x[:1], own, forwards["own"]),
        peer=theirs,
        ratio=statistics.median(b / a for a, b in zip(own, other, strict=True)) if other else None,
        rounds=rounds,
    )


def _pruned_by_peer(model: nn.Module, x: Tensor) -> nn.Module:
    made = copy.deepcopy(model)
    _init_and_step(made, x)
    return made


def _init_and_step(model: Any, x: Tensor) -> None:
    tp = peer()
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    options = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": [model.fc]}
    tp.pruner.BasePruner(model, x, **options).step()


def _cut_times(
    final: Program, model: nn.Module, x: Tensor, rounds: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of each round, ours and the peer's; copies are not timed."""
    own: list[float] = []
    other: list[float] = []
    for _ in range(rounds):
        work = fork(final)
        own.append(_timed(lambda work=work: cut_channels(work, 1)))
        if peer() is not None:
            dense = copy.deepcopy(model)
            other.append(_timed(lambda dense=dense: _init_and_step(dense, x)))
    return own, other


def _timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _latencies(
    dense: nn.Module, own: nn.Module, pruned: nn.Module | None, size: int, seconds: float
) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {"dense": {}, "own": {}, "peer": {}}
    sides = {"dense": dense, "own": own} | ({} if pruned is None else {"peer": pruned})
    for batch in BATCHES:
        x = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            calls = {name: (lambda side=side, x=x: side(x)) for name, side in sides.items()}
            times = measure(calls, seconds=seconds)
        for name in sides:
            found[name][batch] = times.median(name)
    return found


def _side(
    model: nn.Module, dense: nn.Module, x: Tensor, seconds: list[float], latency: dict[int, float]
) -> Side:
    program = (
        model if isinstance(model, Program) else fxprune.capture(model, (x.repeat(2, 1, 1, 1),))
    )
    kept = _count(model, dims=4) / _count(dense, dims=4)
    flops = costs_of(program).flops
    return Side(_count(model), kept, flops, statistics.median(seconds), latency)


def _count(model: nn.Module, dims: int | None = None) -> int:
    return sum(p.numel() for p in model.parameters() if dims in (None, p.dim()))


def _difference(masked: Program, x: Tensor) -> float:
    wide = copy.deepcopy(masked).double().eval()
    small = shrink(fxprune.finalize(wide))
    with torch.no_grad():
        return float((small(x.double()) - wide(x.double())).abs().max())


# The page


def tables(cases: list[Case]) -> list[Table]:
    """Return what is printed: sizes, times of the cut, latencies."""
    return [_sizes(cases), _times(cases), _forwards(cases)]


def _sizes(cases: list[Case]) -> Table:
    columns = ("parameters", "fxprune", "peer", "conv kept", "peer", "FLOPs", "fxprune", "peer")
    table = _table("Half of every layer's channels", *columns, "largest difference")
    for case in cases:
        sides = (case.own, case.peer)
        counts = ["" if s is None else f"{s.parameters / 1e6:.2f} M" for s in sides]
        kept = ["" if s is None else f"{s.convolutions:.3f}" for s in sides]
        flops = ["" if s is None or s.flops is None else f"{s.flops / 1e9:.3f} G" for s in sides]
        dense = (f"{case.parameters / 1e6:.2f} M", f"{case.flops / 1e9:.3f} G")
        more = f"{case.difference:.1e}"
        table.add_row(case.model, dense[0], *counts, *kept, dense[1], *flops, more)
    return table


def _times(cases: list[Case]) -> Table:
    columns = ("analysis and cut", "peer's init and step", "ratio", "capture", "all after it")
    table = _table("Time of the cut, seconds of process time", *columns, "rounds")
    for case in cases:
        theirs = "" if case.peer is None else f"{case.peer.seconds:.2f}"
        ratio = "" if case.ratio is None else f"{case.ratio:.1f}"
        ours, rounds = f"{case.own.seconds:.3f}", str(case.rounds)
        table.add_row(
            case.model, ours, theirs, ratio, f"{case.capture:.2f}", f"{case.whole:.2f}", rounds
        )
    return table


def _forwards(cases: list[Case]) -> Table:
    table = _table("Latency, ms", "batch", "dense", "fxprune", "peer")
    for case in cases:
        for batch in BATCHES:
            sides = [case.latency, case.own.latency, case.peer.latency if case.peer else {}]
            shown = [f"{1e3 * side[batch]:.1f}" if batch in side else "" for side in sides]
            table.add_row(case.model, str(batch), *shown)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the JSON if asked to.

    Args:
        argv: the arguments of the command line; by default those of the process.
    """
    options = _options(argv)
    torch.set_num_threads(1)
    console = Console()
    if peer() is None:
        console.print(f"Torch-Pruning is not installed: `pip install {PEER}` to measure it too")
    load = os.getloadavg()[0]
    cases: list[Case] = []
    for name in options.models:
        console.print(f"{name} ...", style="dim")
        keys = {"size": options.size, "rounds": options.rounds, "seconds": options.seconds}
        cases.append(measure_model(name, **keys))
    loads = f"{load:.1f} to {os.getloadavg()[0]:.1f}"
    console.print(f"torch {torch.__version__}, 1 thread, images of {options.size}, load {loads}")
    for table in tables(cases):
        console.print(table)
        console.print()
    if options.json is not None:
        text = json.dumps([asdict(case) for case in cases], indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


def _options(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.shrink", description="Measure shrink beside Torch-Pruning."
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(VISION))
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="how often the cut is timed")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each batch size")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
