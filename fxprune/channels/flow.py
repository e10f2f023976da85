"""How channels flow through a graph: a value for each node, by a rule per operator.

The tensors that graphs read: as channels see them, and their numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Node, map_arg

from fxprune.channels.atoms import Atoms
from fxprune.channels.axes import Flat, flat_of, joined_axis
from fxprune.channels.values import OPEN, Axis, Bools, Factor, Ids, Sizes, Value, opaque, unknown
from fxprune.program import (
    VALUE,
    Aliases,
    Program,
    detaches,
    is_product,
    ops,
    parameter_read,
    submodule,
    written,
)
from fxprune.rewrite import Refusal

# What a rule finds: a value, one a part of a tuple, why it cannot tell, or nothing for no tensor.
Found = Value | tuple[Value, ...] | Refusal | None
Transfer = Callable[["Flow", Node], Found]
# Called when the channels are cut, with the Surgery.
Edit = Callable[[Any], None]

_RULES: dict[str, Transfer] = {}


def transfer(names: str) -> Callable[[Transfer], Transfer]:
    """Add a transfer rule to the table.

    A rule accounts for every axis of every input: it passes it to its value, ties it (`Flow.tie`),
    meets it (`meeting.meet`) or pins it (`Flow.pin`). What it leaves open is pinned.

    Args:
        names: canonical operator names, joined by `|`.
    """

    def add(rule: Transfer) -> Transfer:
        _RULES.update(dict.fromkeys(re.split(r"[\s|]+", names.strip()), rule))
        return rule

    return add


class Flow:
    """The channels of one graph.

    Args:
        program: whose graph it is.
        mode: which of the program's graphs.
        atoms: shared by all graphs of the program.
        stored: the tensors that graphs read; shared, too.
        aliases: what shares memory in the graph.

    Attributes:
        values: by node; a tuple for operators with several outputs.
        edits: what has to change at a node beside the tensors, when channels are cut.
        unknown: operators without a rule, and rules that refused, in graph order.
        sinks: where constants are absorbed (`fxprune.channels.meeting.Sink`).
        shifts: (node, atoms) where channels are another constant in train than in eval mode.
    """

    def __init__(
        self, program: Program, mode: str, atoms: Atoms, stored: StoredValues, aliases: Aliases
    ) -> None:
        self.program, self.mode, self.atoms, self.stored = program, mode, atoms, stored
        self.graph: fx.Graph = program.graphs[mode]
        self.values: dict[Node, Value | tuple[Value, ...]] = {}
        self.edits: list[Edit] = []
        self.unknown: list[tuple[Node, str]] = []
        self.shifts: list[tuple[Node, Ids]] = []
        self.sinks: list[Any] = []
        self._numbers: dict[Node, Any] = {}  # what is no tensor, with its value in eval mode
        self._sizes = Sizes()
        self._aliases = aliases
        self._own: list[Ids] = []  # channels of tensors that the graph makes of numbers alone

    def run(self) -> None:
        """Follow the channels from the inputs to the outputs."""
        for node in self.graph.nodes:
            if node.op == "output":
                self._pin_inputs(node, "it is an output of the program")
            elif node.op == "get_attr":
                if node.users:
                    self._read(node)
            else:
                self._call(node)

    # What rules ask

    def value(self, node: Any) -> Value:
        """Return a node's value; of one that is no tensor, a value without axes."""
        found = self.values.get(node) if isinstance(node, Node) else None
        return found if isinstance(found, Value) else opaque(())

    def is_number(self, arg: Any) -> bool:
        """Tell whether an argument is a number, given or computed, and no tensor."""
        return arg in self._numbers if isinstance(arg, Node) else isinstance(arg, (int, float))

    def number(self, arg: Any) -> Any:
        """Return what a number or a training flag is in eval mode; None where it is not known."""
        return self._numbers.get(arg) if isinstance(arg, Node) else arg

    def argument(self, node: Node, role: str, default: Any = None) -> Any:
        """Return an argument by its role; `default` where the operator has no such role."""
        return ops.argument(node, role) if ops.has_role(node, role) else default

    def shape(self, node: Any) -> tuple[int, ...] | None:
        """Return the shape of a node's output, symbols as primes; None where it is not noted."""
        noted = node.meta.get(VALUE) if isinstance(node, Node) else None
        return None if noted is None else self._sizes.of(noted[0])

    def copies(self, size: int) -> Axis:
        """Return an axis of channels that are all the same: as many are made as are needed.

        Of a size that is symbolic in part the fixed part can be cut, as heads behind a batch.

        Args:
            size: as `shape` gives it.
        """
        fixed = self._sizes.fixed(size)
        if fixed == 1 or fixed >= OPEN:
            return (Factor(size),)
        own = Factor(fixed, self.fresh(fixed), copies=True)
        return (own,) if fixed == size else (Factor(size // fixed), own)

    def fresh(self, count: int) -> Ids:
        """Return atoms of a tensor that the graph makes of numbers alone."""
        self._own.append(self.atoms.fresh(count))
        return self._own[-1]

    def concrete(self, node: Any) -> torch.Tensor | None:
        """Return the tensor that a node reads: stored, masked or viewed; None if it is computed."""
        return self.stored.concrete(node)

    # What rules do

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
        return joined_axis(self.atoms, left, right, node)

    def shift(self, node: Node, value: Value, there: Bools) -> None:
        """Note where a value is a known constant in eval mode, but another one in train mode."""
        known = ~np.isnan(value.const) & there
        if not known.any():
            return
        for at, factor in enumerate(value.factors):
            others = tuple(d for d in range(known.ndim) if d != at)
            here = np.broadcast_to(known.any(axis=others), (factor.size,))
            if factor.atoms is not None:
                self.shifts.append((node, factor.atoms[here]))

    def flat(self, value: Value, axis: int, node: Node) -> Flat:
        """Return an axis as one factor; what cannot be told apart is pinned."""
        return flat_of(self.atoms, value, axis, node)

    # How the graph is followed

    def _call(self, node: Node) -> None:
        name = _name(node.target) if node.op == "call_function" else node.op
        rule = _RULES.get(name)
        mark = self.atoms.mark()
        stale = self._aliases.stale(node)
        found: Found = Refusal(f"channels are not followed through {name}", node)
        if stale:
            found = Refusal("it writes to a tensor that is read by other names", node)
        elif rule is not None:
            found = self._checked(node, rule(self, node))
        if found is None:
            self._numbers[node] = self._computed(node)
        elif isinstance(found, Refusal):
            self._refuse(node, found)
        else:
            self.values[node] = _finite(found)
        self._pin_open(node, mark)
        for other in stale:
            self._forget(other, node)

    def _computed(self, node: Node) -> Any:
        """Return a number in eval mode; None where it depends on sizes."""
        args = [self.number(arg) for arg in node.args]
        plain = getattr(node.target, "__module__", "") == "_operator" and not node.kwargs
        return node.target(*args) if plain and None not in args else None  # pyright: ignore

    def _checked(self, node: Node, found: Found) -> Found:
        """Hold a value to the shape that was noted at capture."""
        shape = self.shape(node)
        if isinstance(found, Value) and shape is not None and found.shape != shape:
            return Refusal("its channels cannot be followed", node)
        return found

    def _refuse(self, node: Node, refusal: Refusal) -> None:
        shape = self.shape(node)
        if shape is not None:
            self.values[node] = opaque(shape)
        if node.op == "placeholder":
            return
        self._pin_inputs(node, refusal.reason)
        if any(self._tells(factor) for v in self._inputs(node) for factor in v.factors):
            self.unknown.append((node, refusal.reason))

    def _tells(self, factor: Factor) -> bool:
        """Tell whether channels are those of the model, and not of a tensor made of numbers."""
        ids = factor.atoms
        return (
            ids is not None
            and ids.size > 0
            and not any(own[0] <= ids.min() <= ids.max() <= own[-1] for own in self._own)
        )

    def _pin_inputs(self, node: Node, reason: str) -> None:
        for value in self._inputs(node):
            self.pin_value(value, reason, node)

    def _inputs(self, node: Node) -> Iterator[Value]:
        for read in node.all_input_nodes:
            yield from parts_of(self.values.get(read, ()))

    def _pin_open(self, node: Node, mark: int) -> None:
        """Pin what a rule was given and neither passed on, tied, met nor pinned."""
        if ops.canonical_name(node.target) == "getitem" and node in self.values:
            return
        given = [f.atoms for v in self._inputs(node) for f in v.factors if f.atoms is not None]
        made = [f.atoms for v in parts_of(self.values.get(node, ())) for f in v.factors]
        seen = [*self.atoms.since(mark), *(ids for ids in made if ids is not None)]
        known = set(map(id, seen))
        left = [ids for ids in given if id(ids) not in known]
        for ids in self.atoms.outside(left, seen) if left else ():
            one = "the axis has a single channel"
            reason = one if ids.size == 1 else "it reads them in a way that is not followed"
            self.atoms.pin(ids, reason, node)

    def _forget(self, node: Node, by: Node) -> None:
        """Know nothing of a tensor any more that was written to under another name."""
        parts = parts_of(self.values.get(node, ()))
        for value in parts:
            self.pin_value(value, "it is written to under another name", by)
        blank = tuple(unknown(value.axes) for value in parts)
        if parts:
            self.values[node] = blank if isinstance(self.values[node], tuple) else blank[0]

    def _read(self, node: Node) -> None:
        target = str(node.target)
        name = self.program.captured.first.get(target)
        name = name or parameter_read(self.program, node) or target
        value = self.stored.value(node, name)
        path, _, attribute = str(node.target).rpartition(".")
        if value is not None:
            self.values[node] = value
        elif attribute == "training":
            self._numbers[node] = self.program.captured.frozen[False].get(path, False)


def _name(target: Any) -> str:
    """Return an operator's canonical name; with its library's, where one of torch's has it too."""
    name = ops.canonical_name(target)
    other = isinstance(target, OpOverload) and target.namespace not in ("aten", "prims")
    return f"{target.namespace}.{name}" if other and hasattr(torch.ops.aten, name) else name


def parts_of(found: Value | tuple[Value, ...]) -> tuple[Value, ...]:
    """Return what a node gives as a tuple of values."""
    return found if isinstance(found, tuple) else (found,)


def _finite(found: Value | tuple[Value, ...]) -> Value | tuple[Value, ...]:
    """Know nothing where a constant is infinite: times a zero weight it would be NaN."""
    if isinstance(found, tuple):
        return tuple(_without_infinity(value) for value in found)
    return _without_infinity(found)


def _without_infinity(value: Value) -> Value:
    infinite = np.isinf(value.const)
    if not infinite.any():
        return value
    return Value(value.axes, np.where(infinite, np.nan, value.const))


# Views, parts and copies: the same numbers.
_VIEWS = frozenset(
    (
        *("t", "transpose", "permute", "view", "reshape", "unsqueeze", "squeeze", "flatten", "mT"),
        *("unflatten", "swapaxes", "movedim", "numpy_T", "contiguous", "clone", "alias", "detach"),
        *("lift_fresh", "lift_fresh_copy", "split", "split_with_sizes", "chunk", "unbind"),
        *("getitem", "select", "slice", "to", "_to_copy"),
    )
)
# What indices are computed by, from constants.
COUNTS = _VIEWS | frozenset(
    (
        *("arange", "full", "zeros", "ones", "add", "sub", "rsub", "mul", "neg", "remainder"),
        *("floor_divide", "flip", "roll", "cat", "stack", "expand", "repeat"),
    )
)


class StoredValues:
    """The stored tensors of a Program: each of their axes starts atoms of its own.

    Args:
        program: whose tensors they are.
        atoms: where atoms are made.
        aliases: of each graph; the numbers of what it writes to tell nothing.

    Attributes:
        values: by name.
        odd: whether a number in any of them is not finite.
    """

    def __init__(self, program: Program, atoms: Atoms, aliases: Collection[Aliases]) -> None:
        self._program, self._atoms = program, atoms
        self._mutated = {name for each in aliases for name in each.mutated}
        self._overwritten = {node for each in aliases for node in each.overwritten}
        self.values: dict[str, Value] = {}
        self.odd = False
        self._tensors: dict[str, torch.Tensor | None] = {}
        self._concrete: dict[Node, Any] = {}
        self._counted: dict[Node, Any] = {}

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        return iter(self.values.items())

    def value(self, node: Node, name: str) -> Value | None:
        """Return what a node reads under a name; None where it is no tensor."""
        tensor = self._tensor(node)
        if tensor is None:
            return None
        if name not in self.values:
            axes = [(Factor(n, self._atoms.fresh(n)),) for n in tensor.shape]
            self.values[name] = unknown(axes)
            self._pin_odd(node, tensor, self.values[name])
        return self.values[name]

    def concrete(self, node: object) -> torch.Tensor | None:
        """Return the tensor that a node reads: stored, masked or viewed; None if it is computed."""
        found = self._seen(node)
        return found if isinstance(found, torch.Tensor) else None

    def is_stored(self, node: object) -> bool:
        """Tell whether a node reads a stored tensor, masked or viewed, or parts of one."""
        return self._seen(node) is not None

    def constant(self, node: object) -> torch.Tensor | None:
        """Return the tensor that a node computes of nothing but constants; None if of others."""
        found = self._count(node)
        return found if isinstance(found, torch.Tensor) else None

    def _seen(self, node: object) -> Any:
        if not isinstance(node, Node):
            return None
        if node not in self._concrete:
            self._concrete[node] = self._found(node)
        return self._concrete[node]

    def _count(self, node: object) -> Any:
        if not isinstance(node, Node):
            return None
        if node not in self._counted:
            found = self._seen(node)
            known = node.op == "call_function" and ops.canonical_name(node.target) in COUNTS
            found = self._run(node, self._count) if found is None and known else found
            self._counted[node] = found
        return self._counted[node]

    def _tensor(self, node: Node) -> torch.Tensor | None:
        target = str(node.target)
        if target not in self._tensors:
            path, _, attribute = target.rpartition(".")
            found = getattr(submodule(self._program, path), attribute, None)
            self._tensors[target] = found.detach() if isinstance(found, torch.Tensor) else None
        return self._tensors[target]

    def _pin_odd(self, node: Node, tensor: torch.Tensor, value: Value) -> None:
        """Pin what is not finite: times zero, it is NaN and not zero; and what is written to."""
        if str(node.target) in self._mutated:
            for factor in value.factors:
                self._atoms.pin(factor.atoms, "the tensor is written to", node)
        if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
            return
        odd = ~tensor.isfinite()
        self.odd = self.odd or bool(odd.any())
        for axis, factor in enumerate(value.factors):
            others = [d for d in range(tensor.dim()) if d != axis]
            there = odd.any(dim=others) if others else odd
            if factor.atoms is not None:
                ids = factor.atoms[there.cpu().numpy()]
                self._atoms.pin(ids, "a number in it is not finite", node)

    def _found(self, node: Node) -> Any:
        if node.op == "get_attr":
            return None if str(node.target) in self._mutated else self._tensor(node)
        if node.op != "call_function":
            return None
        name = ops.canonical_name(node.target)
        if name not in _VIEWS and not (name == "mul" and is_product(self._program, node)):
            return None
        return self._run(node, self._seen) if node.all_input_nodes else None

    def _run(self, node: Node, found: Callable[[Node], Any]) -> Any:
        """Call an operator on what its inputs are; None where one is not known."""
        if node in self._overwritten or (written(node) is not None and not detaches(node)):
            return None
        if detaches(node):
            return found(node.all_input_nodes[0])
        places = {"device", "pin_memory"}  # indices are read where they are computed
        given = {key: value for key, value in node.kwargs.items() if key not in places}
        parts: dict[Node, Any] = {}
        map_arg((node.args, given), lambda read: parts.setdefault(read, found(read)))
        if any(part is None for part in parts.values()):
            return None
        args, kwargs = map_arg((node.args, given), lambda read: parts[read])
        with torch.no_grad():
            return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
