"""What a Program was before a pass: its graphs line by line, and its tree place by place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.node import Node, map_arg

from fxprune.program import Program

__all__ = ["Line", "Place", "Read", "Ref", "Snapshot", "View", "snapshot", "view_of"]


class Ref(NamedTuple):
    """Stands for a node in the arguments of another: a node's name."""

    node: str


class Read(NamedTuple):
    """Stands for a parameter in the arguments of a node, masked or not: its first name."""

    parameter: str


class Line(NamedTuple):
    """One node of a graph, with a Ref for each node among its arguments."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any


@dataclass(frozen=True)
class Place:
    """What one module of the tree holds.

    Args:
        kind: its class.
        parameters: by attribute, in order; attributes without a tensor are left out, as they are
            of a state dict.
        buffers: the same.
        transient: the buffers that are not saved.
        training: its flag.
    """

    kind: type
    parameters: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]
    transient: frozenset[str]
    training: bool


@dataclass(frozen=True)
class Snapshot:
    """A Program at one moment; the tensors are the same objects.

    Args:
        graphs: lines by mode.
        tree: by path; a module under two paths stands under both.
        first: every parameter's name, mapped to the first name of the same parameter.
        versions: by the id of each tensor, how often torch counted a write to it.
        outputs: how outputs are nested, by mode.
    """

    graphs: Mapping[str, tuple[Line, ...]]
    tree: Mapping[str, Place]
    first: Mapping[str, str]
    versions: Mapping[int, int]
    outputs: Mapping[str, Any]

    def place(self, name: str) -> tuple[Place, str]:
        """Return where a parameter's name leads, and the attribute there."""
        path, _, attribute = name.rpartition(".")
        return self.tree[path], attribute

    def stored(self, name: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the stored tensor of a parameter's name and its mask; None where there is none."""
        place, attribute = self.place(name)
        plain = place.parameters.get(attribute)
        if plain is not None:
            return plain, None
        return place.parameters.get(f"{attribute}_orig"), place.buffers.get(f"{attribute}_mask")

    @property
    def masked(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The stored tensor and the mask of each masked parameter, by first name, in order."""
        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for first in dict.fromkeys(self.first.values()):
            stored, mask = self.stored(first)
            if stored is not None and mask is not None:
                found[first] = (stored, mask)
        return found


def snapshot(program: Program) -> Snapshot:
    """Take down what a Program is; costs as much as its graphs have nodes."""
    tree = {path: _place(module) for path, module in program.named_modules(remove_duplicate=False)}
    tensors = [t for p in tree.values() for t in (*p.parameters.values(), *p.buffers.values())]
    return Snapshot(
        graphs={mode: tuple(_lines(graph)) for mode, graph in program.graphs.items()},
        tree=tree,
        first=dict(program.captured.first),
        versions={id(t): t._version for t in tensors if not t.is_inference()},
        outputs={mode: nesting.tree for mode, nesting in program.captured.outputs.items()},
    )


def _place(module: torch.nn.Module) -> Place:
    return Place(
        kind=type(module) if not isinstance(module, Program) else Program,
        parameters={key: t for key, t in module._parameters.items() if t is not None},
        buffers={key: t for key, t in module._buffers.items() if t is not None},
        transient=frozenset(module._non_persistent_buffers_set),
        training=module.training,
    )


def _lines(graph: fx.Graph) -> Iterator[Line]:
    def ref(node: Node) -> Any:
        return Ref(node.name)

    for node in graph.nodes:
        args, kwargs = map_arg(node.args, ref), map_arg(dict(node.kwargs), ref)
        yield Line(node.name, node.op, node.target, args, kwargs)


@dataclass(frozen=True)
class View:
    """A graph with its parameters looked through: what computes, and how parameters are read.

    Args:
        lines: all lines but reads of parameters, of their masks and their products; arguments
            that are one of these are a Read.
        products: the lines of the products of each masked parameter.
        reads: the parameters that anything reads.
        fault: what is wrong with how parameters are read, and at which node; None where nothing is.
    """

    lines: tuple[Line, ...]
    products: Mapping[str, tuple[Line, ...]]
    reads: frozenset[str]
    fault: tuple[str, str] | None


def view_of(state: Snapshot, mode: str) -> View:
    """Look through the parameters of one graph.

    Args:
        state: a Program at one moment.
        mode: which graph.
    """
    looking = _Looking(state)
    for line in state.graphs[mode]:
        looking.at(line)
    lines = looking.lines
    reads = frozenset(_parameters([(line.args, line.kwargs) for line in lines]))
    products = {name: tuple(found) for name, found in looking.products.items()}
    return View(tuple(lines), products, reads, looking.fault)


class _Looking:
    """Goes through a graph line by line."""

    def __init__(self, state: Snapshot) -> None:
        masked, first = state.masked, state.first.items()
        self.plain = {name: of for name, of in first if of not in masked}
        self.stored = {f"{name}_orig": (of, "orig") for name, of in first if of in masked}
        self.stored |= {f"{name}_mask": (of, "mask") for name, of in first if of in masked}
        self.seen: dict[str, Any] = {}  # what stands for a node
        self.factors: dict[str, tuple[str, str]] = {}  # a node's parameter, and which factor it is
        self.lines: list[Line] = []
        self.products: dict[str, list[Line]] = {}
        self.fault: tuple[str, str] | None = None

    def at(self, line: Line) -> None:
        """Take in the next line."""
        target = str(line.target) if line.op == "get_attr" else None
        product = _product(line, self.factors)
        if target in self.plain:
            self.seen[line.name] = Read(self.plain[target])
        elif target in self.stored:
            self.factors[line.name] = self.stored[target]
        elif product is not None:
            self.seen[line.name] = Read(product)
            self.products.setdefault(product, []).append(line)
        else:
            self._keep(line)

    def _keep(self, line: Line) -> None:
        args, kwargs, past = _resolved(line, self.seen, self.factors)
        if past is not None and self.fault is None:
            name, kind = past
            text = f"reads {name!r} past its mask"
            if kind == "mask":
                text = f"reads the mask of {name!r} itself"
            self.fault = (line.name, text)
        self.lines.append(Line(line.name, line.op, line.target, args, kwargs))


def _product(line: Line, factors: Mapping[str, tuple[str, str]]) -> str | None:
    """Return the parameter whose product with its mask a line is; None where it is none."""
    if line.target is not torch.ops.aten.mul.Tensor or line.kwargs or len(line.args) != 2:
        return None
    kinds = [factors.get(arg.node) if isinstance(arg, Ref) else None for arg in line.args]
    if kinds[0] is None or kinds[1] is None:
        return None
    name = kinds[0][0]
    return name if kinds == [(name, "orig"), (name, "mask")] else None


def _resolved(
    line: Line, seen: Mapping[str, Any], factors: Mapping[str, tuple[str, str]]
) -> tuple[Any, Any, tuple[str, str] | None]:
    """Return a line's arguments with Reads in them, and a factor among them that is no Read."""
    past: list[tuple[str, str]] = []

    def look(value: Any) -> Any:
        if isinstance(value, Ref):
            if value.node in factors:
                past.append(factors[value.node])
            return seen.get(value.node, value)
        if isinstance(value, tuple):
            return tuple(look(part) for part in value)
        if isinstance(value, list):
            return [look(part) for part in value]
        if isinstance(value, dict):
            return {key: look(part) for key, part in value.items()}
        if isinstance(value, slice):
            return ("slice", look(value.start), look(value.stop), look(value.step))
        return value

    args, kwargs = look(line.args), look(line.kwargs)
    return args, kwargs, past[0] if past else None


def _parameters(value: Any) -> Iterator[str]:
    if isinstance(value, Read):
        yield value.parameter
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _parameters(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _parameters(part)
