"""A matcher that tries everything: what `fxprune.pattern` is held to.

It shares the classes of patterns and nothing else. Alternatives are written out first; then every
choice of a node for each call, and of an order for each pair of operands, is checked as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch.fx.node import Node

from fxprune.rewrite.pattern import Anything, Call, Constant, Either, Listed, Name, Pattern

Bindings = frozenset[tuple[str, Any]]

COMMUTATIVE = {"add", "mul", "maximum"}


def all_bindings(pattern: Pattern, root: Node) -> set[Bindings]:
    """Return what the names are bound to, once for each way in which the pattern fits."""
    found: set[Bindings] = set()
    for plain in written_out(pattern):
        found.update(fits_of(plain, root))
    return found


def key_of(name: str, value: Any) -> Any:
    """Return what tells two bindings of a name apart."""
    if isinstance(value, list | tuple):
        return tuple(key_of(name, part) for part in value)
    if not isinstance(value, Node):
        return type(value).__name__, value
    parameter = parameter_behind(value)
    if parameter is None:
        return value.name
    return parameter if name[0].isupper() else (parameter, value.op)


def parameter_behind(value: Any) -> str | None:
    """Return the parameter that a node reads, or multiplies with its mask."""
    if not isinstance(value, Node):
        return None
    if value.op == "get_attr":
        target = str(value.target)
        return None if target.endswith("_mask") else target.removesuffix("_orig")
    if value.op != "call_function" or op_of(value) != "mul" or len(value.args) != 2:
        return None
    a, b = value.args
    if not (isinstance(a, Node) and isinstance(b, Node) and a.op == b.op == "get_attr"):
        return None
    name = str(a.target).removesuffix("_orig")
    return name if str(b.target) == f"{name}_mask" else None


def op_of(node: Node) -> str:
    name = node.target.__name__.split(".")[0]  # type: ignore[union-attr]
    return name.removesuffix("_")


# Alternatives written out


def written_out(pattern: Pattern) -> Iterator[Pattern]:
    """Yield the patterns without alternatives that a pattern is short for."""
    if isinstance(pattern, Either):
        for option in pattern.options:
            yield from written_out(option)
    elif isinstance(pattern, Listed):
        for items in itertools.product(*map(list, map(written_out, pattern.items))):
            yield Listed(items, pattern.rest)
    elif isinstance(pattern, Call):
        parts = [*pattern.args, *(part for _, part in pattern.keywords)]
        for chosen in itertools.product(*map(list, map(written_out, parts))):
            args, others = chosen[: len(pattern.args)], chosen[len(pattern.args) :]
            roles = [role for role, _ in pattern.keywords]
            keywords = tuple(zip(roles, others, strict=True))
            for op in pattern.op.split("|"):
                yield replace(pattern, op=op, args=args, keywords=keywords)
    else:
        yield pattern


# Everything tried


def fits_of(pattern: Pattern, root: Node) -> Iterator[Bindings]:
    calls = list(calls_in(pattern, ()))
    nodes = [node for node in root.graph.nodes if node.op == "call_function"]
    choices = [
        [root] if path == () else [n for n in nodes if call.op in ("_", op_of(n))]
        for path, call in calls
    ]
    for chosen in itertools.product(*choices):
        where = {path: node for (path, _), node in zip(calls, chosen, strict=True)}
        for swapped in itertools.product([False, True], repeat=len(calls)):
            turned = {path for (path, _), turn in zip(calls, swapped, strict=True) if turn}
            found = checked(pattern, root, where, turned)
            if found is not None:
                yield found


def calls_in(pattern: Pattern, path: tuple[Any, ...]) -> Iterator[tuple[Any, Call]]:
    if isinstance(pattern, Call):
        yield path, pattern
        for i, part in enumerate(pattern.args):
            yield from calls_in(part, (*path, i))
        for role, part in pattern.keywords:
            yield from calls_in(part, (*path, role))
    if isinstance(pattern, Listed):
        for i, part in enumerate(pattern.items):
            yield from calls_in(part, (*path, i))


def checked(
    pattern: Pattern, root: Node, where: dict[Any, Node], turned: set[Any]
) -> Bindings | None:
    """Return the bindings if every part fits its node in the orders that were chosen."""
    pairs: list[tuple[str, Any]] = []
    reads: list[tuple[Node, Call, bool]] = []

    def fits(part: Pattern, value: Any, path: tuple[Any, ...]) -> bool:
        if isinstance(part, Anything):
            return True
        if isinstance(part, Constant):
            return is_constant(part.value, value)
        if isinstance(part, Name):
            pairs.append((part.name, key_of(part.name, value)))
            return not part.name[0].isupper() or parameter_behind(value) is not None
        if isinstance(part, Listed):
            return isinstance(value, list | tuple) and all_fit(part, list(value), path)
        if not isinstance(part, Call) or where[path] is not value:
            return False
        return call_fits(part, value, path)

    def all_fit(part: Listed, entries: list[Any], path: tuple[Any, ...]) -> bool:
        n = len(part.items)
        if len(entries) < n or (part.rest is None and len(entries) != n):
            return False
        after = 0 if part.rest is None else n - part.rest
        kept = entries[: n - after] + entries[len(entries) - after :]
        return all(fits(p, v, (*path, i)) for i, (p, v) in enumerate(zip(part.items, kept)))  # noqa: B905

    def call_fits(call: Call, node: Node, path: tuple[Any, ...]) -> bool:
        reads.append((node, call, path == ()))
        if node.op != "call_function" or call.op not in ("_", op_of(node)):
            return False
        passed = values_of(node)
        positional = [value for value, by_position in passed.values() if by_position]
        if path in turned:
            if not may_turn(node, call):
                return False
            positional[:2] = [positional[1], positional[0]]
        if len(call.args) > len(positional) or any(r not in passed for r, _ in call.keywords):
            return False
        args = zip(call.args, positional)  # noqa: B905
        return all(fits(p, v, (*path, i)) for i, (p, v) in enumerate(args)) and all(
            fits(part, passed[role][0], (*path, role)) for role, part in call.keywords
        )

    if not fits(pattern, root, ()):
        return None
    if any(len({key for n, key in pairs if n == name}) > 1 for name, _ in pairs):
        return None
    inside = {node for node, _, _ in reads}
    for node, call, is_root in reads:
        if not is_root and not call.shared and not set(node.users) <= inside:
            return None
    return frozenset(pairs)


def may_turn(node: Node, call: Call) -> bool:
    weighs = node.kwargs.get("alpha", 1) != 1
    pinned = any(role in ("self", "other") for role, _ in call.keywords)
    return op_of(node) in COMMUTATIVE and not weighs and not pinned and bool(call.args)


def values_of(node: Node) -> dict[str, tuple[Any, bool]]:
    """Return each argument's value, and whether it can be passed by position."""
    found: dict[str, tuple[Any, bool]] = {}
    for i, arg in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        value = node.args[i] if i < len(node.args) else node.kwargs.get(arg.name, arg.default_value)
        found[arg.name] = (value, not arg.kwarg_only)
    return found


def is_constant(wanted: Any, value: Any) -> bool:
    if type(wanted) is int and isinstance(value, list | tuple):
        return len(value) > 0 and all(type(v) is int and v == wanted for v in value)
    return type(wanted) is type(value) and wanted == value
