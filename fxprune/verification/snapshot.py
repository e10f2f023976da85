"""Snapshots of a Program, line by line and module by module, and effects that passes declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.node import Node, map_arg

from fxprune.program import AxisMap, Program

EFFECTS = ("masks", "folds", "unmasks", "adopts", "cuts", "constants", "anything")


@dataclass(frozen=True)
class Fault:
    """A violation; `node` is where it shows, None where that is not in a graph."""

    text: str
    node: str | None = None

    def __str__(self) -> str:
        return self.text if self.node is None else f"node {self.node}: {self.text}"


@dataclass(frozen=True)
class Effect:
    """What a pass declares that it does to a Program.

    The kinds are "masks": give parameters masks; "folds": multiply masks into their parameters;
    "unmasks": drop masks; "adopts": take products that the graph has for masked parameters; "cuts":
    cut channels out of tensors, and tell the operators that count them; "constants": let constants
    stand for branches; "anything". Nothing else may change.
    """

    kind: str
    names: tuple[str, ...] = ()  # the parameters; empty for all masked ones (not for "masks")
    zeros: str = "keep"  # "clean": a fold leaves +0.0 wherever the mask is 0
    ordered: bool = True  # whether parameters stand in the source's order afterwards
    cuts: tuple[AxisMap, ...] = ()
    added: tuple[str, ...] = ()  # biases that are made to take over constants
    absorbed: tuple[str, ...] = ()  # biases that take over constants
    removed: tuple[str, ...] = ()  # tensors that nothing reads any more

    @property
    def shrinks(self) -> bool:
        """Whether channels or branches go, so that constants may come."""
        return self.kind in ("cuts", "constants")


class NodeRef(NamedTuple):
    """A node among the arguments of another, by its name."""

    node: str


class ParameterRef(NamedTuple):
    """A parameter among the arguments of a node, masked or not, by its first name."""

    parameter: str


class Line(NamedTuple):
    """One node of a graph, with a reference for each node among its arguments."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any


class Product(NamedTuple):
    """The node that multiplies a parameter with its mask, and whether it has a gradient there."""

    node: str
    has_gradient: bool


@dataclass
class View:
    """A graph with its parameters looked through: what computes, and how parameters are read."""

    lines: list[Line] = field(default_factory=list[Line])  # but reads, masks and products
    products: dict[str, list[Product]] = field(default_factory=dict[str, list[Product]])
    fault: Fault | None = None  # the first read of a masked parameter other than in a product


@dataclass(frozen=True)
class ModuleState:
    """The tensors of one module of the tree, by attribute, in order, with its class and flag."""

    kind: type
    parameters: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]
    transient: frozenset[str]  # the buffers that are not saved
    training: bool


@dataclass(frozen=True)
class Snapshot:
    """A Program at one moment, with the same tensor objects."""

    tree: Mapping[str, ModuleState]  # by path; a module under two paths stands under both
    first: Mapping[str, str]  # each parameter's name: the first name of the same parameter
    versions: Mapping[int, int]  # by the id of each tensor: how often torch counted a write
    outputs: Mapping[str, Any]  # how outputs are nested, by mode
    views: dict[str, View] = field(default_factory=dict[str, View])

    def stored(self, name: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the stored tensor of a parameter's name and its mask; None where there is none."""
        path, _, attribute = name.rpartition(".")
        place = self.tree[path]
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
    """Return what a Program is; costs as much as its graphs have nodes."""
    tree = {
        path: _module_state(module)
        for path, module in program.named_modules(remove_duplicate=False)
    }
    tensors = [t for p in tree.values() for t in (*p.parameters.values(), *p.buffers.values())]
    state = Snapshot(
        tree=tree,
        first=dict(program.captured.first),
        versions={id(t): t._version for t in tensors if not t.is_inference()},
        outputs={mode: nesting.tree for mode, nesting in program.captured.outputs.items()},
    )
    masked, first = state.masked, state.first.items()
    plain = {name: of for name, of in first if of not in masked}
    factors = {f"{name}_orig": (of, "orig") for name, of in first if of in masked}
    factors |= {f"{name}_mask": (of, "mask") for name, of in first if of in masked}
    for mode, graph in program.graphs.items():
        state.views[mode] = _view(graph, plain, factors)
    return state


def _module_state(module: torch.nn.Module) -> ModuleState:
    return ModuleState(
        kind=type(module) if not isinstance(module, Program) else Program,
        parameters={key: t for key, t in module._parameters.items() if t is not None},
        buffers={key: t for key, t in module._buffers.items() if t is not None},
        transient=frozenset(module._non_persistent_buffers_set),
        training=module.training,
    )


def _view(
    graph: fx.Graph, plain: Mapping[str, str], factors: Mapping[str, tuple[str, str]]
) -> View:
    """Look through the parameters of a graph.

    `plain` has the first name of each parameter that is not masked, by what graphs read; `factors`
    that of each masked one and which factor it is, "orig" or "mask".
    """
    view, seen, read, depth = View(), dict[Node, ParameterRef](), dict[Node, tuple[str, str]](), 0

    def look(argument: Node) -> NodeRef | ParameterRef:
        name, kind = read.get(argument, (None, ""))
        if name is not None and view.fault is None:
            what = f"{name!r} past its mask" if kind == "orig" else f"the mask of {name!r} itself"
            view.fault = Fault(f"reads {what}", node.name)
        return seen.get(argument, NodeRef(argument.name))

    for node in graph.nodes:
        target = str(node.target) if node.op == "get_attr" else ""
        product = _product(node, read)
        if node.target is torch._C._set_grad_enabled:
            depth = depth + 1 if isinstance(node.args[0], bool) else 0
        if target in plain:
            seen[node] = ParameterRef(plain[target])
        elif target in factors:
            read[node] = factors[target]
        elif product is not None:
            seen[node] = ParameterRef(product)
            view.products.setdefault(product, []).append(Product(node.name, depth == 0))
        else:
            args, kwargs = map_arg(node.args, look), map_arg(dict(node.kwargs), look)
            view.lines.append(Line(node.name, node.op, node.target, args, kwargs))
    return view


def _product(node: Node, read: Mapping[Node, tuple[str, str]]) -> str | None:
    """Return the parameter whose product with its mask a node is; None where it is none."""
    if node.target is not torch.ops.aten.mul.Tensor or node.kwargs or len(node.args) != 2:
        return None
    orig, mask = (read.get(arg) if isinstance(arg, Node) else None for arg in node.args)
    if orig is None or orig[1] != "orig":
        return None
    return orig[0] if mask == (orig[0], "mask") else None
