"""Measure coupled pruning and shrink beside Torch-Pruning, on hand-written vision models.

    python -m tests.bench.shrink --rounds 5 --json shrink.json

Both sides halve the channels of every layer by L2 norm. Torch-Pruning's init and step are timed
beside the analysis and the cut of the masked Program, in turns in one process. What fxprune does
beside has columns of its own: the masks, which the peer's step finds as well (a ratio counts them
in), the proof that the function is kept, which the peer has not, and the capture, once a model.
Without torch-pruning installed its columns stay empty.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import fxprune
from fxprune.channels.cost import costs_of
from fxprune.compiler.shrinking import shrink
from fxprune.program.program import Program
from tests.bench.models_vision import VISION, densenet201
from tests.bench.shrink_growth import growths
from tests.bench.shrink_tables import growth_table, tables
from tests.bench.shrink_times import PEER, Parts, parts_of, peer
from tests.bench.timing import measure

MODELS = {**VISION, "densenet201": densenet201}
BATCHES = (1, 8)


@dataclass(frozen=True)
class Side:
    """What one side made of a model.

    Args:
        parameters: how many are left.
        convolutions: the share of the entries of 4-dimensional weights that is left.
        flops: of one example; None where they cannot be counted.
        latency: seconds of a forward by batch.
    """

    parameters: int
    convolutions: float
    flops: int | None
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
        parts: seconds of all that comes after it, and of the peer.
        difference: the largest difference from the masked model, in float64 on float64 weights.
        own: what fxprune made.
        peer: what Torch-Pruning made; None where it is not installed.
    """

    model: str
    parameters: int
    flops: int
    latency: dict[int, float]
    capture: float
    parts: Parts
    difference: float
    own: Side
    peer: Side | None


def measure_model(name: str, *, size: int, rounds: int, seconds: float) -> Case:
    """Measure one model.

    Args:
        name: of `MODELS`.
        size: of the images, in pixels.
        rounds: how often both sides are timed.
        seconds: how long forwards are timed, a batch size.
    """
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.randn(2, 3, size, size)
    start = time.process_time()
    program = fxprune.capture(model, (x,)).eval()
    captured = time.process_time() - start
    done = parts_of(program, model, x[:1], rounds)
    forwards = _latencies(program, done.small, done.pruned, size, seconds)
    pruned = done.pruned
    return Case(
        model=name,
        parameters=_count(model),
        flops=costs_of(program).flops,
        latency=forwards["dense"],
        capture=captured,
        parts=done.parts,
        difference=_difference(done.masked, x),
        own=_side(done.small, model, x, forwards["own"]),
        peer=None if pruned is None else _side(pruned, model, x, forwards["peer"]),
    )


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


def _side(model: nn.Module, dense: nn.Module, x: Tensor, latency: dict[int, float]) -> Side:
    program = model if isinstance(model, Program) else fxprune.capture(model, (x,))
    kept = _count(model, dims=4) / _count(dense, dims=4)
    return Side(_count(model), kept, costs_of(program).flops, latency)


def _count(model: nn.Module, dims: int | None = None) -> int:
    return sum(p.numel() for p in model.parameters() if dims in (None, p.dim()))


def _difference(masked: Program, x: Tensor) -> float:
    wide = copy.deepcopy(masked).double().eval()
    small = shrink(fxprune.finalize(wide))
    with torch.no_grad():
        return float((small(x.double()) - wide(x.double())).abs().max())


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
    grown = growths(options.rounds)
    loads = f"{load:.1f} to {os.getloadavg()[0]:.1f}"
    console.print(f"torch {torch.__version__}, 1 thread, images of {options.size}, load {loads}")
    for table in [*tables(cases), growth_table(grown)]:
        console.print(table)
        console.print()
    if options.json is not None:
        found = {"models": [asdict(c) for c in cases], "growth": [asdict(g) for g in grown]}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _options(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.shrink", description="Measure shrink beside Torch-Pruning."
    )
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(VISION))
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="how often both sides are timed")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each batch size")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
