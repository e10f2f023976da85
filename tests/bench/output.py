"""What the benchmark prints, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from tests.bench.cases import PAIRS, Case, limits_of
from tests.bench.models import FORMS

MEMORY_PAIRS = (("masked", "hooked"), ("final", "dense"))


def page(cases: list[Case], setup: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Give the parts of the page: the setup, two tables, the limits.

    Args:
        cases: what was measured.
        setup: torch's version, threads, clock, and the load before and after.
    """
    load = " to ".join(f"{value:.1f}" for value in setup["load"])
    yield (
        f"torch {setup['torch']}, threads {setup['threads']}, time by {setup['clock']}, "
        f"load {load}\nForward in eval mode without gradients; half of every weight is pruned."
    )
    yield _times(cases)
    yield _memory(cases)
    yield "\n".join(["Limits: medians (quartiles)", *map(str, limits_of(cases))])


def to_json(cases: list[Case], setup: Mapping[str, Any]) -> str:
    """Return all of it as JSON, quartiles included; seconds and bytes are not rounded."""
    limits = [{**asdict(limit), "met": limit.met} for limit in limits_of(cases)]
    data = {**setup, "cases": [asdict(case) for case in cases], "limits": limits}
    return json.dumps(data, indent=2) + "\n"


def _times(cases: list[Case]) -> Table:
    stacked = [f"{form} /\n{base}" for form, base in PAIRS]
    table = _table("Time: ratios, each the median over the rounds", "dense\nms", *stacked, "rounds")
    for case in cases:
        ratios = [f"{ratio.median:.3f}" for ratio in case.ratios.values()]
        dense = f"{1e3 * case.seconds['dense']:.2f}"
        table.add_row(case.model, str(case.batch), dense, *ratios, str(case.rounds))
    return table


def _memory(cases: list[Case]) -> Table:
    stacked = [f"{form} /\n{base}" for form, base in MEMORY_PAIRS]
    table = _table("Peak memory that a forward allocates, MiB, and ratios", *FORMS, *stacked)
    for case in cases:
        sizes = [f"{case.peak[form] / 2**20:.2f}" for form in FORMS]
        ratios = [f"{case.memory(*pair):.3f}" for pair in MEMORY_PAIRS]
        table.add_row(case.model, str(case.batch), *sizes, *ratios)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for column in ("batch", *columns):
        table.add_column(column, justify="right", no_wrap=True)
    return table
