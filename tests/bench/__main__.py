"""Measure time and memory of masked and finalized Programs against hooked and dense models.

    python -m tests.bench --seconds 30 --threads 1 --json bench.json

Every time is a ratio of calls that alternate in one process, the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from tests.bench.cases import Case, measure_case
from tests.bench.models import MODELS, forms_of
from tests.bench.output import page, to_json

BATCHES = (1, 16)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables and the limits, and write the JSON if asked to.

    Args:
        argv: the arguments of the command line; by default those of the process.
    """
    options = _options(argv)
    torch.set_num_threads(options.threads)
    # With one thread the process's own time leaves out that others have the core.
    clock = time.process_time if options.threads == 1 else time.perf_counter
    load = os.getloadavg()[0]
    console = Console()
    cases = _measure(console, options.seconds, clock)
    setup = {
        "torch": torch.__version__,
        "threads": options.threads,
        "clock": clock.__name__,
        "load": [load, os.getloadavg()[0]],
    }
    for part in page(cases, setup):
        console.print(part, highlight=False)
        console.print()
    if options.json is not None:
        options.json.write_text(to_json(cases, setup), encoding="utf-8")


def _options(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure masked and finalized Programs against hooked and dense models.",
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="for each of the four cases")
    parser.add_argument("--threads", type=int, default=1, help="that torch uses")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    return parser.parse_args(argv)


def _measure(console: Console, seconds: float, clock: Any) -> list[Case]:
    cases: list[Case] = []
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")
        for name in MODELS:
            progress.update(task, description=f"{name}: build its forms")
            forms = forms_of(name)
            for batch in BATCHES:
                progress.update(task, description=f"{name}, batch {batch}")
                cases.append(measure_case(name, forms, batch, seconds, clock))
    return cases


if __name__ == "__main__":
    main()
