"""The search that fits a pattern to a node, over the orders and alternatives it leaves open.

It keeps its own stack, so that no pattern is too deep for it, and counts its steps, so that none
takes it too long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.node import Node

from fxprune.program import Program, commutes, is_product, operand, ops, parameter_of
from fxprune.rewrite.pattern import Call, Constant, Either, Listed, Match, Name, Pattern, Refusal
from fxprune.words import shorten

MOST_STEPS = 20_000
"""How many steps a search takes at one node."""

_FREE = 200  # steps at each node that do not count towards those that all nodes share
_SHARED = 500_000

_NAMED = (torch.dtype, torch.layout, torch.memory_format, torch.device)


class _Goal(NamedTuple):
    """A part of the pattern and the value that it is to fit, which `reader` reads."""

    part: Pattern
    value: Any
    reader: Node | None


class _Place(NamedTuple):
    """A node that a call of the pattern fits; `reader` is None where the match ends."""

    node: Node
    reader: Node | None
    shared: bool


class _Way(NamedTuple):
    """How far one attempt has come; `goals` and `places` are linked lists."""

    goals: Any
    bindings: Mapping[str, Any]
    places: Any
    depth: int


@dataclass
class Search:
    """Fits patterns to the nodes of one Program."""

    program: Program
    alone: bool = True  # values that others read too must be marked for it in the pattern
    products: bool = True  # a parameter's product with its mask is a call too, not it alone
    spare: int = _SHARED  # steps that are left to nodes that take many
    is_cut: bool = False  # whether a search took too many

    def first(
        self, pattern: Pattern, node: Node, bindings: Mapping[str, Any] | None = None
    ) -> Match | Refusal:
        """Return the first way to fit a pattern to a node, or the refusal that came deepest."""
        deepest = Refusal("", depth=-1)
        for found in self.ways(pattern, node, bindings):
            if isinstance(found, Match):
                return found
            if found.depth > deepest.depth:
                deepest = found
        return deepest

    def ways(
        self, pattern: Pattern, node: Node, bindings: Mapping[str, Any] | None = None
    ) -> Iterator[Match | Refusal]:
        """Yield every way to fit a pattern to a node, and how each other attempt failed."""
        stack = [_Way((_Goal(pattern, node, None), None), bindings or {}, None, 0)]
        steps = 0
        while stack:
            way = stack.pop()
            steps += 1
            self.spare -= steps > _FREE
            if steps > MOST_STEPS or self.spare < 0:
                self.is_cut = True
                # Nothing is known beside it: it counts as the deepest.
                yield Refusal("the pattern can fit in too many ways to try", node, MOST_STEPS)
                return
            if way.goals is None:
                yield self._end(way) or Match(node, dict(way.bindings))
                continue
            found = self._step(way)
            if isinstance(found, Refusal):
                yield found
            else:
                stack += reversed(found)

    def _step(self, way: _Way) -> list[_Way] | Refusal:
        """Return the ways that go on from one, or why none does."""
        (part, value, reader), rest = way.goals
        bindings, places = way.bindings, way.places
        if isinstance(part, Either):
            goals = [_Goal(option, value, reader) for option in part.options]
            return [_Way((goal, rest), bindings, places, way.depth) for goal in goals]
        found: list[list[_Goal]] | str | None = None
        if isinstance(part, Call):
            found = self._call(part, value, reader)
            places = (_Place(value, reader, part.shared), places)
        elif isinstance(part, Listed):
            found = _entry_goals(part, value, reader)
        elif isinstance(part, Constant):
            found = None if _equals(part.value, value) else f"{_show(value)} is not {part}"
        elif isinstance(part, Name):
            found = self._name(part, value, bindings)
            bindings = {part.name: value, **bindings}
        if isinstance(found, str):
            return Refusal(found, _culprit(part, value, reader), way.depth)
        on = way.depth + 1
        return [_Way(_push(goals, rest), bindings, places, on) for goals in found or [[]]]

    def _end(self, way: _Way) -> Refusal | None:
        """Return why a way that fits everywhere is no match: others read what is inside of it."""
        places: list[_Place] = []
        while way.places is not None:
            place, rest = way.places
            places.append(place)
            way = way._replace(places=rest)
        inside = {place.node for place in places}
        for node, reader, shared in reversed(places):
            if reader is None or shared or not self.alone:
                continue
            others = [user for user in node.users if user not in inside]
            if others:
                name, only = ops.canonical_name(node.target), ops.canonical_name(reader.target)
                reason = f"{name}'s value has {len(node.users)} users, not only {only}"
                return Refusal(reason, others[0], way.depth)
        return None

    def _name(self, part: Name, value: Any, bindings: Mapping[str, Any]) -> str | None:
        if part.is_parameter and parameter_of(self.program, value) is None:
            return f"{_show(value)} is not a parameter"
        bound = bindings.get(part.name, value)
        if part.name in bindings and not self._is_same(bound, value, part.is_parameter):
            return f"{part.name} is bound to two different values"
        return None

    def _is_same(self, a: Any, b: Any, is_parameter: bool) -> bool:
        """Tell whether two values are one node, one parameter, or equal constants."""
        if isinstance(a, list | tuple) and isinstance(b, list | tuple):
            pairs = zip(a, b, strict=False)  # pyright: ignore[reportUnknownArgumentType]
            return len(a) == len(b) and all(self._is_same(x, y, is_parameter) for x, y in pairs)  # pyright: ignore
        if not isinstance(a, Node) or not isinstance(b, Node):
            return type(a) is type(b) and a == b
        name = parameter_of(self.program, a)
        if a is b or name is None:
            return a is b
        alike = is_parameter or is_product(self.program, a) == is_product(self.program, b)
        return alike and name == parameter_of(self.program, b)

    def _call(self, part: Call, value: Any, reader: Node | None) -> list[list[_Goal]] | str:
        """Return the goals of the arguments, once for each order of the operands."""
        if not isinstance(value, Node) or value.op != "call_function":
            return f"{_show(value)} is not a call of {_either(part)}"
        if not self.products and is_product(self.program, value):
            return f"{parameter_of(self.program, value)} is not a call of {_either(part)}"
        name = ops.canonical_name(value.target)
        if name not in part.ops and "_" not in part.ops:
            return f"the operator is {name}, not {_either(part)}"
        keywords: list[_Goal] = []
        orders: list[list[_Goal]] = []
        try:
            keywords += [_Goal(p, operand(value, role), value) for role, p in part.keywords]
            for order in _orders(part, value):
                pairs = zip(part.args, order, strict=True)
                goals = [_Goal(p, operand(value, at), value) for p, at in pairs]
                orders.append([*goals, *keywords])
        except KeyError as error:
            role = error.args[0]
            return f"{name} has no argument {role + 1 if isinstance(role, int) else role}"
        return orders


def _orders(part: Call, node: Node) -> list[list[int]]:
    """Return the positions that the pattern's arguments may stand for."""
    written = list(range(len(part.args)))
    if not written or not commutes(node) or node.args[0] is node.args[1]:
        return [written]
    # Who names an operand means the one of that name.
    named = any(role in ("self", "other") for role, _ in part.keywords)
    if named or (len(written) > 1 and part.args[0] == part.args[1]):
        return [written]
    return [written, [1, 0, *written[2:]][: len(written)]]


def _entry_goals(part: Listed, value: Any, reader: Node | None) -> list[list[_Goal]] | str:
    if not isinstance(value, list | tuple):
        return f"{_show(value)} is not a list"
    entries: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    free = len(entries) - len(part.items)
    if free < 0 or (part.rest is None and free > 0):
        least = "at least " if part.rest is not None else ""
        return f"the list has length {len(entries)}, not {least}{len(part.items)}"
    if part.rest is not None:
        entries = entries[: part.rest] + entries[part.rest + free :]
    pairs = zip(part.items, entries, strict=True)
    return [[_Goal(item, entry, reader) for item, entry in pairs]]


def _equals(wanted: Any, value: Any) -> bool:
    if isinstance(value, list | tuple) and type(wanted) is int:
        # As in torch's schemas, a number stands for a list of it.
        entries: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        return bool(entries) and all(_equals(wanted, entry) for entry in entries)
    if isinstance(value, _NAMED) and isinstance(wanted, str):
        return str(value).removeprefix("torch.") == wanted
    return type(value) is type(wanted) and bool(value == wanted)


def _culprit(part: Pattern, value: Any, reader: Node | None) -> Node | None:
    """Return the node that did not fit: a call itself, of anything else its reader."""
    is_call = isinstance(value, Node) and value.op == "call_function"
    if isinstance(part, Call) and is_call:
        return value
    return reader or (value if isinstance(value, Node) else None)


def _push(goals: list[_Goal], rest: Any) -> Any:
    for goal in reversed(goals):
        rest = (goal, rest)
    return rest


def _either(part: Call) -> str:
    return "any operator" if "_" in part.ops else " or ".join(part.ops)


def _show(value: Any) -> str:
    return shorten(str(value) if isinstance(value, Node) else repr(value))


def match(pattern: Pattern, node: Node, program: Program) -> Match | Refusal:
    """Fit a pattern to the expression that ends in `node`; the first order that fits counts."""
    return Search(program).first(pattern, node)


def matches(pattern: Pattern, graph: fx.Graph, program: Program) -> Iterator[Match]:
    """Yield the match that ends in each node of a graph, in the graph's order.

    A node is tried when the match before it has been dealt with, so that the graph may be edited
    meanwhile: nodes that were erased are left out, nodes that were made are not tried.
    """
    search = Search(program)
    for node in candidates(pattern, graph):
        # Erasing a node unlinks it; it must not be read any more.
        if not getattr(node, "_erased", False):
            found = search.first(pattern, node)
            if isinstance(found, Match):
                yield found


def candidates(pattern: Pattern, graph: fx.Graph) -> list[Node]:
    """Return the nodes of a graph that a match can end in, by their operators alone."""
    wanted = root_ops(pattern)
    if wanted is None:
        return list(graph.nodes)
    calls = (node for node in graph.nodes if node.op == "call_function")
    return [node for node in calls if ops.canonical_name(node.target) in wanted]


def root_ops(pattern: Pattern) -> frozenset[str] | None:
    """Return the operators that a match can end in; None where any node will do."""
    if isinstance(pattern, Call):
        return None if "_" in pattern.ops else frozenset(pattern.ops)
    if not isinstance(pattern, Either):
        return None
    found: frozenset[str] = frozenset()
    for option in pattern.options:
        wanted = root_ops(option)
        if wanted is None:
            return None
        found |= wanted
    return found
