"""Canonical operator names and argument roles, derived from the schemas of torch's operators.

An operator has one name whatever its overload and whether it works in place (`aten.relu_.default`
is `relu`), and each argument has the name that its schema gives it (argument 1 of `conv2d` is
`weight`). Recurrent layers take their parameters as one list; `RECURRENT` names the parts.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

from torch._ops import OpOverload
from torch.fx.node import Node, map_arg

# Positions of the parts within the parameter list of one layer and direction, from
# torch.nn.RNNBase._flat_weights: weights first, then the biases where there are any.
_RECURRENT_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def canonical_name(target: Any) -> str:
    """Return the operator's canonical name, without namespace, overload or in-place mark.

    Args:
        target: the target of a call node: an `OpOverload` or any function.

    Example:
        >>> import operator, torch
        >>> canonical_name(torch.ops.aten.relu_.default), canonical_name(operator.mul)
        ('relu', 'mul')
    """
    if isinstance(target, OpOverload):
        name = _schema_name(target)
    else:
        name = _OPERATORS.get(target) or str(getattr(target, "__name__", target))
    in_place = name.endswith("_") and not name.endswith("__")
    return name[:-1] if in_place and getattr(target, "__module__", "") != "_operator" else name


# Python's operators that have another name than torch's.
_OPERATORS: dict[Any, str] = {
    operator.iadd: "add",
    operator.isub: "sub",
    operator.imul: "mul",
    operator.itruediv: "div",
    operator.truediv: "div",
    operator.imatmul: "matmul",
    operator.ipow: "pow",
}


@dataclass(frozen=True)
class _Argument:
    """An argument of a Python function, as a schema would describe it."""

    name: str
    default_value: Any
    alias_info: None = None


def schema_arguments(target: Any) -> tuple[Any, ...]:
    """Return the schema's arguments in order, or those of a layer's function; else nothing."""
    if isinstance(target, OpOverload):
        return _arguments(target)
    of_layers = getattr(target, "__module__", "") in ("torch.nn.functional", _NORMS)
    return _signature(target) if of_layers and isinstance(target, FunctionType) else ()


_NORMS = "fxprune.frontends.traced"


@cache
def _arguments(target: OpOverload) -> tuple[Any, ...]:
    return tuple(target._schema.arguments)


@cache
def _places(target: Any) -> dict[str, tuple[int, Any]]:
    """Return the position and the default of each argument, by its name."""
    named = enumerate(schema_arguments(target))
    return {arg.name: (position, arg.default_value) for position, arg in named}


@cache
def _schema_name(target: OpOverload) -> str:
    return target._schema.name.rpartition("::")[2]


@cache
def _signature(target: FunctionType) -> tuple[_Argument, ...]:
    kinds = inspect.Parameter
    return tuple(
        _Argument(p.name, None if p.default is kinds.empty else p.default)
        for p in inspect.signature(target).parameters.values()
        if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    )


def argument(node: Node, role: str) -> Any:
    """Return what a node passes as the argument of that name, or its default; KeyError for none."""
    position, default = _places(node.target)[role]
    args = node.args
    return args[position] if position < len(args) else node.kwargs.get(role, default)


def has_role(node: Node, role: str) -> bool:
    """Tell whether the node's operator has an argument of that name."""
    return role in _places(node.target)


def roles(node: Node) -> Iterator[tuple[str, Node]]:
    """Yield each node that `node` reads, with the role it plays there.

    A node in a list argument has the list's role; the parameters of a recurrent layer have the
    role of their part, `weight_ih` for example.
    """
    named = schema_arguments(node.target)
    keyed = [
        (named[i].name if i < len(named) else f"arg{i}", arg) for i, arg in enumerate(node.args)
    ]
    name = canonical_name(node.target)
    for role, arg in [*keyed, *node.kwargs.items()]:
        if role == "params" and name in RECURRENT and isinstance(arg, (list, tuple)):
            yield from _recurrent_roles(node, arg)
            continue
        for part in _nodes_in(arg):
            yield role, part


def _recurrent_roles(node: Node, params: Any) -> Iterator[tuple[str, Node]]:
    parts = 4 if argument(node, "has_biases") else 2
    directions = 2 if argument(node, "bidirectional") else 1
    # A projected LSTM has one matrix more for each layer, after the others.
    period = max(len(params) // (argument(node, "num_layers") * directions), 1)
    for i, part in enumerate(params):
        yield (*_RECURRENT_PARTS[:parts], "weight_hr")[i % period], part


def _nodes_in(arg: Any) -> list[Node]:
    found: list[Node] = []
    map_arg(arg, found.append)  # pyright: ignore[reportArgumentType]
    return found


# Operators whose first two arguments may change places. The max and min of a dimension are not
# among them: their second argument is not called `other`.
_COMMUTATIVE = frozenset(
    [
        *("add", "mul", "multiply", "eq", "ne", "not_equal", "hypot", "gcd", "lcm"),
        *("maximum", "minimum", "max", "min", "fmax", "fmin", "logaddexp", "logaddexp2"),
        *("logical_and", "logical_or", "logical_xor"),
        *("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__"),
    ]
)
_OPERANDS = ["self", "other"]
# Python's own, where a graph was not traced down to torch's.
_PYTHON = frozenset(
    {operator.add, operator.mul, operator.eq, operator.ne, operator.and_, operator.or_}
    | {operator.xor, operator.iadd, operator.imul, operator.iand, operator.ior, operator.ixor}
)


def operand(node: Node, role: str | int) -> Any:
    """Return the argument of a name or position, its default if left out; KeyError for none."""
    if isinstance(role, int) and role < len(node.args):
        return node.args[role]
    if role in node.kwargs:
        return node.kwargs[str(role)]
    for position, arg in enumerate(schema_arguments(node.target)):
        if arg.name == role and position < len(node.args):
            return node.args[position]
        if arg.name == role or (position == role and not getattr(arg, "kwarg_only", False)):
            return node.kwargs.get(arg.name, arg.default_value)
    raise KeyError(role)


def commutes(node: Node) -> bool:
    """Tell whether the first two arguments of a call may change places."""
    if len(node.args) < 2 or not _may_commute(node.target):
        return False
    if node.target in _PYTHON:
        return not any(isinstance(arg, list | tuple) for arg in node.args)
    # add(x, y, alpha=2) is x + 2 * y.
    weights: list[Any] = [node.kwargs.get("alpha", 1), *node.args[2:]]
    return all(weight == 1 for weight in weights)


@cache
def _may_commute(target: Any) -> bool:
    if target in _PYTHON:
        return True
    named = [arg.name for arg in schema_arguments(target)]
    known = canonical_name(target) in _COMMUTATIVE
    return known and named[:2] == _OPERANDS and named[2:] in ([], ["alpha"])
