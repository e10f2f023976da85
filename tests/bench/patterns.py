"""Measure how long it takes to find patterns in a graph of 5,000 nodes.

    python -m tests.bench.patterns

Each time is the best of several searches of the whole graph, from the text on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import fx, nn

import fxprune
from fxprune.program.program import Program
from fxprune.rewrite.matching import matches
from fxprune.rewrite.pattern import parse

NODES = 5000
PATTERNS = (
    "relu(batch_norm(conv2d(_, W)))",
    "relu(batch_norm(conv2d(_, W, groups=1)))",
    "(relu|gelu)(batch_norm(conv2d(_, W))!)",
    "add(_, relu(batch_norm(conv2d(_, W))))",
    "add(add(_, x), x)",
    "gelu(batch_norm(conv2d(_, W)))",
    "W",
)
LIMIT = 0.2  # seconds, for the patterns of three operators


@dataclass(frozen=True)
class Found:
    """What was found of a pattern, and the seconds it took."""

    pattern: str
    count: int
    seconds: float


def owner() -> Program:
    """Capture the Program whose parameters the graph reads."""
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return fxprune.capture(block, (torch.randn(2, 4, 5, 5),))


def big_graph(nodes: int = NODES) -> fx.Graph:
    """Build a chain of blocks with a skip each: convolution, norm, activation, sum."""
    aten, graph = torch.ops.aten, fx.Graph()
    x = graph.placeholder("x")
    read = {name: graph.create_node("get_attr", f"{name}") for name in ("0.weight", "1.weight")}
    while len(graph.nodes) + 4 < nodes:
        y = graph.call_function(aten.conv2d.default, (x, read["0.weight"]))
        norm = (y, read["1.weight"], None, None, None, False, 0.1, 1e-5, True)
        y = graph.call_function(aten.batch_norm.default, norm)
        y = graph.call_function(aten.relu.default, (y,))
        x = graph.call_function(aten.add.Tensor, (y, x))
    while len(graph.nodes) + 1 < nodes:
        x = graph.call_function(aten.neg.default, (x,))
    graph.output(x)
    return graph


def measure_pattern(text: str, graph: fx.Graph, program: Program, rounds: int = 5) -> Found:
    """Find a pattern several times, and keep the shortest."""
    times: list[float] = []
    count = 0
    for _ in range(rounds):
        parse.cache_clear()
        start = time.perf_counter()
        count = sum(1 for _ in matches(parse(text), graph, program))
        times.append(time.perf_counter() - start)
    return Found(text, count, min(times))


def main() -> None:
    """Measure, and print a table."""
    graph, program = big_graph(), owner()
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("pattern", "matches", "ms"):
        table.add_column(column, justify="left" if column == "pattern" else "right")
    for text in PATTERNS:
        found = measure_pattern(text, graph, program)
        table.add_row(text, str(found.count), f"{1e3 * found.seconds:.1f}")
    console = Console()
    console.print(f"{len(graph.nodes)} nodes; three operators are to take at most {LIMIT} s")
    console.print(table, highlight=False)


if __name__ == "__main__":
    main()
