"""Patterns over a Program's nodes, written as expressions over canonical operator names.

    conv2d(_, W, groups=1)

`_` is anything; a capital name binds a parameter that the graph reads, masked or not; a small
name binds any argument; a keyword constrains or binds the argument of that role; `*` says that
more arguments may follow. A name that stands twice must be the same both times.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch.fx.node import Node

from fxprune import ops
from fxprune.errors import RecipeError
from fxprune.program import Program
from fxprune.reads import parameter_of

__all__ = ["Anything", "Call", "Constant", "Match", "Name", "Pattern", "Refusal", "match", "parse"]


@dataclass(frozen=True)
class Refusal:
    """Why a rule or a pattern does not apply.

    Args:
        reason: one clause that a user can act on.
        node: the node that is in the way.
    """

    reason: str
    node: Node | None = None

    def __str__(self) -> str:
        where = "" if self.node is None else f" (node {self.node.name})"
        return f"{self.reason}{where}"


@dataclass(frozen=True)
class Match:
    """A node that a pattern fits, and what its names are bound to."""

    node: Node
    bindings: dict[str, Any]


@dataclass(frozen=True)
class Anything:
    """`_`: fits anything and binds nothing."""


@dataclass(frozen=True)
class Name:
    """A name: a parameter when it starts with a capital, else any argument."""

    name: str

    @property
    def is_parameter(self) -> bool:
        """Whether the name binds only a parameter."""
        return self.name[0].isupper()


@dataclass(frozen=True)
class Constant:
    """A value that an argument must equal."""

    value: Any


@dataclass(frozen=True)
class Call:
    """An operator by its canonical name, with patterns for its arguments."""

    op: str
    args: tuple[Pattern, ...]
    keywords: tuple[tuple[str, Pattern], ...]


Pattern = Anything | Name | Constant | Call


@lru_cache(maxsize=256)
def parse(text: str) -> Pattern:
    """Parse a pattern.

    Raises:
        RecipeError: the text is not a pattern; points at the place.

    Example:
        >>> parse("mul(W, m)")
        Call(op='mul', args=(Name(name='W'), Name(name='m')), keywords=())
    """
    text = text.strip()
    try:
        # `*` alone is no Python; a starred name is.
        tree = ast.parse(_REST.sub(r"\1*_\2", text), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        at = getattr(error, "offset", None) or 1
        raise _fault(text, at - 1, "this is not an expression") from None
    return _build(text, tree.body)


_REST = re.compile(r"([(,]\s*)\*(\s*[,)])")


def _build(text: str, tree: ast.expr) -> Pattern:
    if isinstance(tree, ast.Name):
        return Anything() if tree.id == "_" else Name(tree.id)
    if isinstance(tree, ast.Constant):
        return Constant(tree.value)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        inside = _build(text, tree.operand)
        if isinstance(inside, Constant) and isinstance(inside.value, (int, float)):
            return Constant(-inside.value)
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise _fault(text, tree.col_offset, "expected a name, a constant or operator(...)")
    keywords: list[tuple[str, Pattern]] = []
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise _fault(text, keyword.col_offset, "`**` is not part of the language")
        keywords.append((keyword.arg, _build(text, keyword.value)))
    # The language lets more arguments follow in any case; `*` says so.
    for arg in tree.args[:-1]:
        if isinstance(arg, ast.Starred):
            raise _fault(text, arg.col_offset, "`*` comes last: it takes the rest")
    plain = [a for a in tree.args if not (isinstance(a, ast.Starred) and ast.unparse(a) == "*_")]
    args = tuple(_build(text, arg) for arg in plain)
    return Call(tree.func.id, args, tuple(keywords))


def _fault(text: str, offset: int, what: str) -> RecipeError:
    return RecipeError(f"pattern: {what}\n  {text}\n  {' ' * offset}^")


def match(pattern: Pattern, node: Node, program: Program) -> Match | Refusal:
    """Fit a pattern to the expression that ends in `node`.

    Args:
        pattern: what `parse` gives.
        node: the node of the outermost operator, or the read of a parameter.
        program: where parameters are looked up.

    Returns:
        The bindings, or the first thing that did not fit.
    """
    bindings: dict[str, Any] = {}
    refusal = _fit(pattern, node, node, program, bindings)
    return Match(node, bindings) if refusal is None else refusal


def _fit(
    pattern: Pattern, value: Any, at: Node, program: Program, bindings: dict[str, Any]
) -> Refusal | None:
    if isinstance(pattern, Anything):
        return None
    if isinstance(pattern, Constant):
        same = type(value) is type(pattern.value) and value == pattern.value
        return None if same else Refusal(f"{value!r} is not {pattern.value!r}", at)
    if isinstance(pattern, Name):
        return _fit_name(pattern, value, at, program, bindings)
    return _fit_call(pattern, value, at, program, bindings)


def _fit_name(
    pattern: Name, value: Any, at: Node, program: Program, bindings: dict[str, Any]
) -> Refusal | None:
    if pattern.is_parameter and parameter_of(program, value) is None:
        return Refusal(f"{value} is not a parameter", at)
    if pattern.name in bindings and not _is_same(bindings[pattern.name], value):
        return Refusal(f"{pattern.name} is bound to two different values", at)
    bindings[pattern.name] = value
    return None


def _is_same(a: Any, b: Any) -> bool:
    return a is b if isinstance(a, Node) else type(a) is type(b) and a == b


def _fit_call(
    pattern: Call, value: Any, at: Node, program: Program, bindings: dict[str, Any]
) -> Refusal | None:
    if not isinstance(value, Node) or value.op != "call_function":
        return Refusal(f"{value} is not a call of {pattern.op}", at)
    name = ops.canonical_name(value.target)
    if name != pattern.op:
        return Refusal(f"the operator is {name}, not {pattern.op}", value)
    if len(pattern.args) > len(value.args):
        return Refusal(f"{name} has {len(value.args)} arguments here", value)
    for part, arg in zip(pattern.args, value.args, strict=False):
        refusal = _fit(part, arg, value, program, bindings)
        if refusal is not None:
            return refusal
    for role, part in pattern.keywords:
        if not ops.has_role(value, role):
            return Refusal(f"{name} has no argument {role}", value)
        refusal = _fit(part, ops.argument(value, role), value, program, bindings)
        if refusal is not None:
            return refusal
    return None
