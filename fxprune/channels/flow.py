"""How channels flow through a graph: a value for each node, by a rule per operator.

The tensors that graphs read have values by name, and numbers where they are of use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Node, map_arg

from fxprune.channels.atoms import Atoms
from fxprune.channels.axes import Flat, flat_of, tie_axes
from fxprune.channels.values import OPEN, Axis, Bools, Factor, Ids, Sizes, Value, opaque, unknown
from fxprune.errors import PassError
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

# What a rule finds: a value, or one for each part of a tuple; nothing of what is no tensor.
Result = Value | tuple[Value, ...] | None
Transfer = Callable[["Flow", Node], Result | Refusal]
_Rule = TypeVar("_Rule", bound=Transfer)
# Called when the channels are cut, with the Surgery.
Edit = Callable[[Any], None]

_RULES: dict[str, Transfer] = {}
_OTHER_PARTS = "its operands' axes are made of different parts"


class FollowError(PassError):
    """Channels cannot be followed through an operator, for a reason of one clause."""


def transfer(names: str) -> Callable[[_Rule], _Rule]:
    """Add a transfer rule for canonical operator names, joined by `|` or blanks.

    A rule accounts for every axis of every input: it passes it to its value, ties it (`Flow.tie`),
    lets a sum consume it (`consume`) or pins it (`Flow.pin`). What it leaves open is pinned, and so
    is every input of an operator for which it raises FollowError.
    """

    def add(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(re.split(r"[\s|]+", names.strip()), rule))
        return rule

    return add


class Flow:
    """The channels of one graph; atoms and stored tensors are shared by a Program's graphs."""

    def __init__(
        self, program: Program, mode: str, atoms: Atoms, stored: StoredValues, aliases: Aliases
    ) -> None:
        self.program, self.mode, self.atoms, self.stored = program, mode, atoms, stored
        self.graph: fx.Graph = program.graphs[mode]
        # A tuple for operators with several outputs.
        self.values: dict[Node, Value | tuple[Value, ...]] = {}
        self.edits: list[Edit] = []  # what has to change beside the tensors in a cut
        # Operators without a rule, or whose rule refused, in graph order.
        self.unknown: list[tuple[Node, str]] = []
        # Channels that are another constant in train than in eval mode.
        self.shifts: list[tuple[Node, Ids]] = []
        self.sinks: list[Any] = []  # where constants are absorbed (`meeting.Sink`)
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
                self._follow(node)

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

    def noted_shape(self, node: Node) -> tuple[int, ...]:
        """Return the shape of a node's output, or raise a FollowError where it is not noted."""
        shape = self.shape(node)
        if shape is None:
            raise FollowError("its output has no noted shape")
        return shape

    def dim(self, node: Node, value: Value, default: int | None = None, role: str = "dim") -> int:
        """Return which axis of a value an argument names, counted from 0."""
        return int(self.argument(node, role, default)) % max(len(value.axes), 1)

    def copies(self, size: int) -> Axis:
        """Return an axis of channels that are all the same: as many are made as are needed.

        Of a size (as `shape` gives it) that is symbolic in part the fixed part can be cut, as heads
        behind a batch.
        """
        fixed = self._sizes.fixed_part(size)
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

    def tie(self, left: Axis, right: Axis, node: Node, refusal: str = _OTHER_PARTS) -> Axis:
        """Tie two axes of one size; return the axis that stands for both, or raise FollowError."""
        axis = tie_axes(self.atoms, left, right, node)
        if axis is None:
            raise FollowError(refusal)
        return axis

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

    def _follow(self, node: Node) -> None:
        mark = self.atoms.mark()
        stale = self._aliases.stale(node)
        try:
            if stale:
                raise FollowError("it writes to a tensor that is read by other names")
            found = self._apply_rule(node)
        except FollowError as error:
            self._refuse(node, str(error))
        else:
            if found is None:
                self._numbers[node] = self._compute(node)
            elif isinstance(found, tuple):
                self.values[node] = tuple(map(_without_infinity, found))
            else:
                self.values[node] = _without_infinity(found)
        self._pin_open(node, mark)
        for other in stale:
            self._forget(other, node)

    def _apply_rule(self, node: Node) -> Result:
        """Return what a rule finds, held to the shape that was noted at capture."""
        name = _name(node.target) if node.op == "call_function" else node.op
        if name not in _RULES:
            raise FollowError(f"channels are not followed through {name}")
        found, shape = _RULES[name](self, node), self.shape(node)
        if isinstance(found, Refusal):
            raise FollowError(found.reason)
        if isinstance(found, Value) and shape is not None and found.shape != shape:
            raise FollowError("its channels cannot be followed")
        return found

    def _compute(self, node: Node) -> Any:
        """Return a number in eval mode; None where it depends on sizes."""
        args = [self.number(arg) for arg in node.args]
        plain = getattr(node.target, "__module__", "") == "_operator" and not node.kwargs
        return node.target(*args) if plain and None not in args else None  # pyright: ignore

    def _refuse(self, node: Node, reason: str) -> None:
        shape = self.shape(node)
        if shape is not None:
            self.values[node] = opaque(shape)
        if node.op == "placeholder":
            return
        self._pin_inputs(node, reason)
        if any(self._is_of_model(factor) for v in self._inputs(node) for factor in v.factors):
            self.unknown.append((node, reason))

    def _is_of_model(self, factor: Factor) -> bool:
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


def _without_infinity(value: Value) -> Value:
    """Know nothing where a constant is infinite: times a zero weight it would be NaN."""
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

    The numbers of what a graph writes to, by its `aliases`, tell nothing.
    """

    def __init__(self, program: Program, atoms: Atoms, aliases: Collection[Aliases]) -> None:
        self._program, self._atoms = program, atoms
        self._mutated = {name for each in aliases for name in each.mutated}
        self._overwritten = {node for each in aliases for node in each.overwritten}
        self.values: dict[str, Value] = {}
        self.odd = False  # whether a number in any of them is not finite
        self._tensors: dict[str, torch.Tensor | None] = {}
        self._concrete: dict[Node, Any] = {}
        self._computed: dict[Node, Any] = {}

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
        found = self._read(node)
        return found if isinstance(found, torch.Tensor) else None

    def is_stored(self, node: object) -> bool:
        """Tell whether a node reads a stored tensor, masked or viewed, or parts of one."""
        return self._read(node) is not None

    def constant(self, node: object) -> torch.Tensor | None:
        """Return the tensor that a node computes of nothing but constants; None if of others."""
        found = self._compute(node)
        return found if isinstance(found, torch.Tensor) else None

    def _read(self, node: object) -> Any:
        if not isinstance(node, Node):
            return None
        if node not in self._concrete:
            self._concrete[node] = self._find(node)
        return self._concrete[node]

    def _compute(self, node: object) -> Any:
        if not isinstance(node, Node):
            return None
        if node not in self._computed:
            found = self._read(node)
            known = node.op == "call_function" and ops.canonical_name(node.target) in COUNTS
            found = self._run(node, self._compute) if found is None and known else found
            self._computed[node] = found
        return self._computed[node]

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

    def _find(self, node: Node) -> Any:
        if node.op == "get_attr":
            return None if str(node.target) in self._mutated else self._tensor(node)
        if node.op != "call_function":
            return None
        name = ops.canonical_name(node.target)
        if name not in _VIEWS and not (name == "mul" and is_product(self._program, node)):
            return None
        return self._run(node, self._read) if node.all_input_nodes else None

    def _run(self, node: Node, read: Callable[[Node], Any]) -> Any:
        """Call an operator on what its inputs are; None where one is not known."""
        if node in self._overwritten or (written(node) is not None and not detaches(node)):
            return None
        if detaches(node):
            return read(node.all_input_nodes[0])
        places = {"device", "pin_memory"}  # indices are read where they are computed
        call = node.args, {key: v for key, v in node.kwargs.items() if key not in places}
        parts: dict[Node, Any] = {}
        map_arg(call, lambda part: parts.setdefault(part, read(part)))
        if any(part is None for part in parts.values()):
            return None
        args, kwargs = map_arg(call, parts.__getitem__)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
