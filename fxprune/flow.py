"""How channels flow through a graph: a value for each node, made by a transfer rule per operator."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx.node import Node, map_arg

from fxprune import ops
from fxprune.atoms import Atoms
from fxprune.factors import Array, Axis, Factor, Ids, Value, opaque, sizes_of, unknown
from fxprune.importing import VALUE
from fxprune.pattern import Refusal
from fxprune.program import Program
from fxprune.reads import is_product, parameter_read
from fxprune.regroup import match_axes

__all__ = ["Edit", "Flat", "Flow", "Transfer", "transfer"]

Found = Value | tuple[Value, ...] | Refusal
Transfer = Callable[["Flow", Node], Found]
# Called when the channels are cut, with the node and which atoms go.
Edit = Callable[[Any], None]


@dataclass(frozen=True)
class Flat:
    """An axis as one factor.

    Args:
        size: of the axis.
        atoms: the atom of each index; None where nothing of it may be cut.
        const: what the value is at each index, or at all of them, wherever it is along the other
            axes; NaN where it is not known. Shape (size,) or (1,).
    """

    size: int
    atoms: Ids | None
    const: Array

    @property
    def factor(self) -> Factor:
        """The same as a factor."""
        return Factor(self.size, self.atoms)


_RULES: dict[str, Transfer] = {}
_PRIMES = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099, 1_000_117, 1_000_121)
_VIEWS = frozenset({"t", "transpose", "permute", "view", "reshape", "unsqueeze", "squeeze", "to"})


def transfer(names: str) -> Callable[[Transfer], Transfer]:
    """Add a transfer rule to the table.

    Args:
        names: canonical operator names, joined by `|`.
    """

    def add(rule: Transfer) -> Transfer:
        _RULES.update(dict.fromkeys(re.split(r"\s*\|\s*", names.strip()), rule))
        return rule

    return add


class Flow:
    """The channels of one graph.

    Args:
        program: whose graph it is.
        graph: the graph.
        atoms: shared by all graphs of the program.
        stored: values of the tensors that graphs read, by attribute name; shared, too.

    Attributes:
        values: by node; a tuple for operators with several outputs.
        edits: what has to change at a node beside the tensors, when channels are cut.
        unknown: operators without a rule, and rules that refused, in graph order.
    """

    def __init__(
        self, program: Program, graph: fx.Graph, atoms: Atoms, stored: dict[str, Value]
    ) -> None:
        self.program, self.graph, self.atoms, self.stored = program, graph, atoms, stored
        self.values: dict[Node, Value | tuple[Value, ...]] = {}
        self.edits: list[Edit] = []
        self.unknown: list[tuple[Node, str]] = []
        self._symbols: dict[str, int] = {}
        self._concrete: dict[Node, torch.Tensor | None] = {}

    def run(self) -> None:
        """Follow the channels from the inputs to the outputs."""
        for node in self.graph.nodes:
            if node.op == "output":
                self._pin_all(node, "it is an output of the program")
            elif node.op == "get_attr":
                self._read(node)
            else:
                self._call(node)

    # What rules ask

    def value(self, node: Any) -> Value:
        """Return a node's value; of one that is no tensor, a value without axes."""
        found = self.values.get(node) if isinstance(node, Node) else None
        return found if isinstance(found, Value) else opaque(())

    def argument(self, node: Node, role: str, default: Any = None) -> Any:
        """Return an argument by its role."""
        return ops.argument(node, role) if ops.has_role(node, role) else default

    def shape(self, node: Node) -> tuple[int, ...] | None:
        """Return the shape of a node's output, symbols as primes; None where it is not noted."""
        noted = node.meta.get(VALUE)
        return None if noted is None else tuple(self._size(size) for size in noted[0])

    def concrete(self, node: Any) -> torch.Tensor | None:
        """Return the tensor that a node reads: stored, masked or viewed; None if it is computed."""
        if not isinstance(node, Node):
            return None
        if node not in self._concrete:
            self._concrete[node] = self._found(node)
        return self._concrete[node]

    def pin(self, axis: Axis, reason: str, node: Node) -> None:
        """Let the channels of an axis stay."""
        for factor in axis:
            self.atoms.pin(factor.atoms, reason, node)

    def pin_value(self, value: Value, reason: str, node: Node) -> None:
        """Let all channels of a value stay."""
        for axis in value.axes:
            self.pin(axis, reason, node)

    def tie(self, left: Axis, right: Axis, node: Node) -> Axis | None:
        """Tie two axes of one size; return the axis that stands for both, None if they differ."""
        pair = match_axes(self.atoms, left, right)
        if pair is None:
            return None
        made: list[Factor] = []
        for a, b in zip(*pair, strict=True):
            if a.atoms is not None and b.atoms is not None:
                self.atoms.tie(a.atoms, b.atoms)
            elif a.size > 1:
                self.pin((a, b), "it meets a value that cannot be cut", node)
            made.append(a if a.atoms is not None else b)
        return tuple(made)

    def flat(self, value: Value, axis: int, node: Node) -> Flat:
        """Return an axis as one factor; what cannot be told apart is pinned.

        Args:
            value: whose axis it is.
            axis: which.
            node: for whom.
        """
        factors = value.axes[axis]
        tracked = [i for i, factor in enumerate(factors) if factor.atoms is not None]
        if len(tracked) > 1:
            self.pin(factors, "two of its parts could be cut, each in its own way", node)
        sizes = tuple(factor.size for factor in factors)
        cells: Ids | None = None
        if tracked:
            shape = [1] * len(sizes)
            shape[tracked[0]] = -1
            ids = self._ids(factors[tracked[0]]).reshape(shape)
            cells = np.broadcast_to(ids, sizes).reshape(-1)
        const = _along(value, axis)
        spread = const.reshape(-1) if const.size == 1 else np.broadcast_to(const, sizes).reshape(-1)
        return Flat(sizes_of(factors), cells, spread)

    @staticmethod
    def _ids(factor: Factor) -> Ids:
        return np.empty(0, np.int64) if factor.atoms is None else factor.atoms

    # How the graph is followed

    def _call(self, node: Node) -> None:
        name = ops.canonical_name(node.target) if node.op == "call_function" else node.op
        rule = _RULES.get(name)
        found: Found = Refusal(f"{name} has no rule for channels", node)
        if rule is not None:
            found = rule(self, node)
        if isinstance(found, Refusal):
            self._refuse(node, found)
        elif found is not None:
            self.values[node] = found

    def _refuse(self, node: Node, refusal: Refusal) -> None:
        shape = self.shape(node)
        if shape is not None:
            self.values[node] = opaque(shape)
        if node.op != "placeholder":
            self._pin_all(node, refusal.reason)
            if any(isinstance(self.values.get(n), Value) for n in node.all_input_nodes):
                self.unknown.append((node, refusal.reason))

    def _pin_all(self, node: Node, reason: str) -> None:
        for read in node.all_input_nodes:
            found = self.values.get(read, ())
            for value in found if isinstance(found, tuple) else (found,):
                self.pin_value(value, reason, node)

    def _read(self, node: Node) -> None:
        target = str(node.target)
        owner, _, attribute = target.rpartition(".")
        tensor = getattr(self.program.get_submodule(owner), attribute, None)
        if not isinstance(tensor, torch.Tensor):
            return
        name = parameter_read(self.program, node)
        key = target if name is None else name
        if key not in self.stored:
            axes = [(Factor(n, self.atoms.fresh(n)),) for n in tensor.shape]
            self.stored[key] = unknown(axes)
        self.values[node] = self.stored[key]

    def _found(self, node: Node) -> torch.Tensor | None:
        if node.op == "get_attr":
            owner, _, attribute = str(node.target).rpartition(".")
            tensor = getattr(self.program.get_submodule(owner), attribute, None)
            return tensor.detach() if isinstance(tensor, torch.Tensor) else None
        if node.op != "call_function":
            return None
        name = ops.canonical_name(node.target)
        if name not in _VIEWS and not is_product(self.program, node):
            return None
        parts = {read: self.concrete(read) for read in node.all_input_nodes}
        if any(part is None for part in parts.values()):
            return None
        args, kwargs = map_arg((node.args, node.kwargs), lambda read: parts[read])
        with torch.no_grad():
            return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def _size(self, size: int | str) -> int:
        if isinstance(size, int):
            return size
        product = 1
        for part in str(size).split("*"):
            text = part.strip("() ")
            if text.isdigit():
                product *= int(text)
            else:
                known = len(self._symbols)
                product *= self._symbols.setdefault(text, _PRIMES[known % len(_PRIMES)])
        return product


def _along(value: Value, axis: int) -> Array:
    """Return const with the factors of one axis as its dimensions; NaN where others matter."""
    factors = value.axes[axis]
    first = value.first_factor(axis)
    others = tuple(d for d in range(value.const.ndim) if not first <= d < first + len(factors))
    const = value.const
    low, high = const.min(axis=others), const.max(axis=others)
    return np.where(low == high, low, np.nan)  # NaN stays NaN
