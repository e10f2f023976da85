"""The page of the shrink benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from tests.bench.shrink_growth import Growth

if TYPE_CHECKING:
    from tests.bench.shrink import Case


def tables(cases: list[Case]) -> list[Table]:
    """Return what is printed of models: sizes, times, latencies."""
    return [_sizes(cases), _times(cases), _forwards(cases)]


def growth_table(growths: list[Growth]) -> Table:
    """Return what is printed of residual nets that grow."""
    columns = ("blocks", "parameters", "nodes", "masks", "analysis and cut")
    table = _table("Residual nets that grow, seconds of process time", "width", *columns)
    for each in growths:
        sizes = (str(each.width), str(each.depth), _millions(each.parameters), str(each.nodes))
        table.add_row(*sizes, f"{each.masks:.3f}", f"{each.cut:.3f}")
    return table


def _sizes(cases: list[Case]) -> Table:
    columns = ("parameters", "fxprune", "peer", "conv kept", "peer", "FLOPs", "fxprune", "peer")
    table = _table("Half of every layer's channels", "model", *columns, "difference")
    for case in cases:
        sides = (case.own, case.peer)
        counts = ["" if s is None else _millions(s.parameters) for s in sides]
        kept = ["" if s is None else f"{s.convolutions:.3f}" for s in sides]
        flops = ["" if s is None or s.flops is None else _billions(s.flops) for s in sides]
        dense = (_millions(case.parameters), _billions(case.flops))
        more = f"{case.difference:.1e}"
        table.add_row(case.model, dense[0], *counts, *kept, dense[1], *flops, more)
    return table


def _times(cases: list[Case]) -> Table:
    columns = ("analysis", "cut", "peer", "ratio", "masks", "ratio with it", "proof", "capture")
    title = "Seconds of process time; the peer's init and step against analysis and cut"
    table = _table(title, "model", *columns, "rounds")
    for case in cases:
        parts = case.parts
        row = [f"{parts.analysis:.3f}", f"{parts.cut:.3f}"]
        row += ["" if parts.peer is None else f"{parts.peer:.2f}", _times_as(parts.ratio)]
        row += [f"{parts.masks:.2f}", _times_as(parts.whole)]
        row += [f"{parts.proof:.2f}", f"{case.capture:.2f}"]
        table.add_row(case.model, *row, f"{parts.rounds}, {parts.peer_rounds}")
    return table


def _forwards(cases: list[Case]) -> Table:
    table = _table("Latency, ms", "model", "batch", "dense", "fxprune", "peer")
    for case in cases:
        sides = [case.latency, case.own.latency, case.peer.latency if case.peer else {}]
        for batch in case.latency:
            shown = [f"{1e3 * side[batch]:.1f}" if batch in side else "" for side in sides]
            table.add_row(case.model, str(batch), *shown)
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(box=None, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _billions(count: int) -> str:
    return f"{count / 1e9:.3f} G"


def _times_as(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}"
