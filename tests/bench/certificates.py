"""Measure what checking costs: compile with certificates and without, in turns in one process.

    python -m tests.bench.certificates --rounds 5

The models are ResNet-18 at 224 pixels and the pretrained all-MiniLM-L6-v2 of the example.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import fxprune
from examples.sentence_encoder import load
from tests.bench.models_vision import VISION

RECIPE: dict[str, Any] = {
    "rule": [
        {
            "select": {"op": ["conv2d", "linear"], "param": "weight"},
            "method": "l1_unstructured",
            "scope": "global",
            "amount": 0.5,
        }
    ],
    "finalize": {},
}
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def _resnet18() -> tuple[nn.Module, Inputs]:
    return VISION["resnet18"]().eval(), ((torch.randn(2, 3, 224, 224),), {})


def _minilm() -> tuple[nn.Module, Inputs]:
    encoder, inputs = load()
    return encoder, ((), dict(inputs))


MODELS = {"ResNet-18": _resnet18, "MiniLM": _minilm}


def seconds_of(model: nn.Module, inputs: Inputs, rounds: int) -> dict[bool, list[float]]:
    """Return seconds of compile, with checks (True) and without, one a round."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for certify, own in found.items():
            gc.collect()
            start = time.perf_counter()
            fxprune.compile(model, RECIPE, *inputs, certify=certify)
            own.append(time.perf_counter() - start)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.certificates", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("model", "with checks, s", "without, s", "ratio"):
        table.add_column(title, justify="right")
    for name in options.models:
        torch.manual_seed(0)
        model, inputs = MODELS[name]()
        seconds_of(model, inputs, 1)  # imports, caches
        found = seconds_of(model, inputs, options.rounds)
        pairs = zip(found[True], found[False], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        medians = [f"{statistics.median(found[certify]):.2f}" for certify in (True, False)]
        table.add_row(name, *medians, f"{ratio:.2f}")
    console = Console()
    console.print(
        f"wall time, threads {options.threads}, medians of {options.rounds}, "
        f"load {os.getloadavg()[0]:.1f}",
        highlight=False,
    )
    console.print(table)


if __name__ == "__main__":
    main()
