"""The arguments of a call by name or position, defaults included, and which may change places."""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

from torch.fx.node import Node

from fxprune import ops

__all__ = ["commutes", "operand"]

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
    """Return the argument of that name or position, its default where the call leaves it out.

    Args:
        node: a call.
        role: the argument's name in the operator's schema, or its position.

    Raises:
        KeyError: the operator has no such argument.
    """
    if isinstance(role, int) and role < len(node.args):
        return node.args[role]
    if role in node.kwargs:
        return node.kwargs[str(role)]
    for position, arg in enumerate(ops.schema_arguments(node.target)):
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
    named = [arg.name for arg in ops.schema_arguments(target)]
    known = ops.canonical_name(target) in _COMMUTATIVE
    return known and named[:2] == _OPERANDS and named[2:] in ([], ["alpha"])
