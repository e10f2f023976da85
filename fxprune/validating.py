"""Holds what a pass did to a Program to what the pass says it edits; shares no code with passes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fxprune.announced import Announced, Fault
from fxprune.snapshot import Line, Snapshot, View, view_of
from fxprune.validating_cut_graphs import CutGraph
from fxprune.validating_cuts import CutTree
from fxprune.validating_tree import Tree, written_faults

__all__ = ["faults_of"]

_CUTS = ("cuts", "constants")


def faults_of(before: Snapshot, after: Snapshot, said: Announced) -> Iterator[Fault]:
    """Yield what is wrong after a pass, graphs first, in their order.

    Args:
        before: the Program as the pass found it.
        after: the Program as the pass left it.
        said: what the pass said that it would do.
    """
    views = {mode: view_of(after, mode) for mode in after.graphs}
    for mode, view in views.items():
        yield from _view_faults(mode, view, after)
    if said.edits == "anything":
        yield from written_faults(before)
        return
    if set(before.graphs) != set(after.graphs):
        yield Fault(f"the graphs are {sorted(after.graphs)}, and were {sorted(before.graphs)}")
        return
    for mode, view in views.items():
        was = view_of(before, mode)
        if said.edits in _CUTS:
            yield from CutGraph(mode, was, view, said.edits, said.added).faults()
        elif said.edits == "adopts":
            yield from _adopted_graph(mode, was, view)
        else:
            yield from _same_lines(mode, was.lines, view.lines)
            yield from _new_products(mode, before, after, was, view)
    yield from written_faults(before)
    tree = CutTree if said.edits in _CUTS else Tree
    yield from tree(before, after, said).faults()


# Graphs


def _view_faults(mode: str, view: View, after: Snapshot) -> Iterator[Fault]:
    if view.fault is not None:
        node, text = view.fault
        yield Fault(f"{text} in the {mode} graph", node)
    for name, products in view.products.items():
        if len(products) > 1:
            yield Fault(f"{name!r} is multiplied again in the {mode} graph", products[1].name)
    for name in sorted(view.reads & set(after.masked) - set(view.products)):
        yield Fault(f"{name!r} has a mask and no product in the {mode} graph")


def _same_lines(mode: str, was: tuple[Line, ...], now: tuple[Line, ...]) -> Iterator[Fault]:
    """Yield the first node that is another one, among those that are no reads of parameters."""
    for old, new in zip(was, now, strict=False):
        if old.name != new.name:
            yield Fault(f"stands where {old.name} stood in the {mode} graph", new.name)
            return
        if (old.op, old.target) != (new.op, new.target):
            text = f"is {new.op} {new.target}, and was {old.op} {old.target}, in the {mode} graph"
            yield Fault(text, new.name)
            return
        # As text: 1, 1.0 and True are equal, and NaN is not.
        if repr((old.args, old.kwargs)) != repr((new.args, new.kwargs)):
            text = f"takes {_told(new)}, and took {_told(old)}, in the {mode} graph"
            yield Fault(text, new.name)
            return
    if len(was) != len(now):
        longer, what = (now, "came") if len(now) > len(was) else (was, "went")
        yield Fault(f"{what} in the {mode} graph", longer[min(len(was), len(now))].name)


def _told(line: Line) -> str:
    args = [str(arg) for arg in line.args]
    return f"({', '.join([*args, *(f'{k}={v}' for k, v in line.kwargs.items())])})"


def _new_products(
    mode: str, before: Snapshot, after: Snapshot, was: View, now: View
) -> Iterator[Fault]:
    """Yield new products of regions without gradients: what reads them elsewhere would lose its."""
    kept = {name: lines[0].name for name, lines in was.products.items()}
    depth, inside = 0, dict[str, bool]()
    for line in after.graphs[mode]:
        if line.target is torch._C._set_grad_enabled:
            depth = depth + 1 if isinstance(line.args[0], bool) else 0
        inside[line.name] = depth > 0
    for name, lines in now.products.items():
        node = lines[0].name
        if name in kept and node != kept[name] and name in before.masked:
            yield Fault(f"is another product of {name!r} than before, in the {mode} graph", node)
        elif name not in kept and inside[node]:
            yield Fault(f"multiplies {name!r} in a region without gradients, {mode} graph", node)


_OF_MASKS = ("aten::mul", "aten::to", "aten::_to_copy")


def _adopted_graph(mode: str, was: View, now: View) -> Iterator[Fault]:
    """Yield what changed beside products of masks, their reads, and casts of masks."""
    kept = {line.name: line for line in now.lines}
    for line in was.lines:
        schema = getattr(getattr(line.target, "_schema", None), "name", None)
        gone = line.name not in kept
        if gone and line.op != "get_attr" and schema not in _OF_MASKS:
            yield Fault(f"went in the {mode} graph, and is no product of a mask", line.name)
        elif not gone and (kept[line.name].op, kept[line.name].target) != (line.op, line.target):
            yield Fault(f"is another operator in the {mode} graph", line.name)
    known = {line.name for line in was.lines}
    for line in now.lines:
        if line.name not in known:
            yield Fault(f"came in the {mode} graph", line.name)
