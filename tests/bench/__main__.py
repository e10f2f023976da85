"""Measure time and memory of masked and finalized Programs against hooked and dense models.

    python -m tests.bench --seconds 15 --threads 1 --json bench.json

Every number is a ratio of calls that alternate in one process, the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.bench.cases import Case, limits_of, measure_case
from tests.bench.models import MODELS, forms_of

BATCHES = (1, 16)


def main(argv: list[str] | None = None) -> list[Case]:
    """Measure, print the table and the limits, and write the JSON if asked to."""
    options = _options(argv)
    torch.set_num_threads(options.threads)
    # With one thread the process's own time leaves out that others have the core.
    clock = time.process_time if options.threads == 1 else time.perf_counter
    console = Console()
    load = os.getloadavg()[0]
    cases: list[Case] = []
    with _progress(console) as progress:
        task = progress.add_task("")
        for name in MODELS:
            progress.update(task, description=f"{name}: build its forms")
            forms = forms_of(name)
            for batch in BATCHES:
                progress.update(task, description=f"{name}, batch {batch}")
                cases.append(measure_case(name, forms, batch, options.seconds, clock))
    setup = {
        "torch": torch.__version__,
        "threads": options.threads,
        "clock": clock.__name__,
        "load": [load, os.getloadavg()[0]],
    }
    _print(console, cases, setup)
    if options.json is not None:
        options.json.write_text(_json(cases, setup), encoding="utf-8")
    return cases


def _options(argv: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="time for each of four cases")
    parser.add_argument("--threads", type=int, default=1, help="threads that torch uses")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    return parser.parse_args(argv)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _print(console: Console, cases: list[Case], setup: dict[str, Any]) -> None:
    load = " to ".join(f"{value:.1f}" for value in setup["load"])
    console.print(
        f"torch {setup['torch']}, threads {setup['threads']}, time by {setup['clock']}, "
        f"load {load}\nforward in eval mode without gradients, half of every weight pruned\n",
        highlight=False,
    )
    console.print(_times(cases), "", _memory(cases), "", highlight=False)
    for limit in limits_of(cases):
        console.print(str(limit), highlight=False)


def _times(cases: list[Case]) -> Table:
    table = Table("model", box=None, title="time: median of the rounds' ratios (quartiles)")
    table.title_justify = "left"
    for title in ("batch", "dense ms", "hooked/dense", "masked/hooked", "masked/dense"):
        table.add_column(title, justify="right")
    for title in ("finalized/hooked", "finalized/dense", "rounds"):
        table.add_column(title, justify="right")
    for case in cases:
        ratios = [str(case.ratios[pair]) for pair in case.ratios]
        row = [case.model, str(case.batch), f"{1e3 * case.seconds['dense']:.2f}", *ratios]
        table.add_row(*row, str(case.rounds))
    return table


def _memory(cases: list[Case]) -> Table:
    table = Table("model", box=None, title="peak memory that a forward allocates, MiB")
    table.title_justify = "left"
    titles = ("batch", "dense", "hooked", "masked", "finalized", "masked/hooked", "finalized/dense")
    for title in titles:
        table.add_column(title, justify="right")
    for case in cases:
        sizes = [f"{size / 2**20:.2f}" for size in case.peak.values()]
        ratios = [f"{case.memory(*pair):.3f}" for pair in (MASKED, FINAL)]
        table.add_row(case.model, str(case.batch), *sizes, *ratios)
    return table


MASKED, FINAL = ("masked", "hooked"), ("finalized", "dense")


def _json(cases: list[Case], setup: dict[str, Any]) -> str:
    found = [asdict(case) for case in cases]
    limits = [{**asdict(limit), "met": limit.met} for limit in limits_of(cases)]
    return json.dumps({**setup, "cases": found, "limits": limits}, indent=2) + "\n"


if __name__ == "__main__":
    main()
