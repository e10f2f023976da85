"""Why a pattern does not take a parameter: the attempt with it that came nearest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch.fx.node import Node

from fxprune import ops
from fxprune.operands import commutes
from fxprune.pattern import Call, Match, Name, Pattern, Refusal
from fxprune.pattern_parts import calls_around, inner_parts, operators, parts_of
from fxprune.pattern_search import Search
from fxprune.program import Program
from fxprune.reads import is_product, parameter_of

__all__ = ["Reading", "nearest_miss", "readers_of"]

_UNREAD = Refusal("no operator reads it")


@dataclass(frozen=True)
class Reading:
    """A parameter, or its product with the mask, as a node and one user of it."""

    value: Node
    user: Node


def readers_of(program: Program) -> dict[str, list[Reading]]:
    """Return who reads each parameter, by its first name, in all graphs."""
    found: dict[str, list[Reading]] = {}
    for graph in program.graphs.values():
        for node in graph.nodes:
            name = parameter_of(program, node)
            if name is not None:
                users = (user for user in node.users if not is_product(program, user))
                found.setdefault(name, []).extend(Reading(node, user) for user in users)
    return found


def nearest_miss(
    program: Program, pattern: Pattern, names: tuple[str, ...], readings: Sequence[Reading]
) -> Refusal:
    """Return the refusal of the attempt that came deepest, of those with one parameter.

    Args:
        program: where the pattern was looked for.
        pattern: it binds the parameter in none of its matches.
        names: the names in the pattern that the parameter might have been bound to.
        readings: who reads the parameter.
    """
    attempts = (
        _attempt(program, pattern, name, calls, reading)
        for reading in readings
        for name in names
        for calls in calls_around(pattern, name)
        if calls
    )
    return max(attempts, key=lambda refusal: refusal.depth, default=_UNREAD)


def _attempt(
    program: Program, pattern: Pattern, name: str, calls: tuple[Call, ...], reading: Reading
) -> Refusal:
    """Fit the calls around a name one after the other, from the parameter to the whole pattern."""
    misfit = _elsewhere(pattern, name, calls[0], reading)
    if misfit is not None:
        return misfit
    # Who else reads what is inside of the match is seen when the whole of it fits.
    search = Search(program, alone=False, products=False)
    bindings = {name: reading.value}
    nodes, fitted = [reading.user], 0
    for call in calls:
        search.alone = call is calls[-1]
        found = [search.first(call, node, bindings) for node in nodes]
        deepest = max((f for f in found if isinstance(f, Refusal)), key=_depth, default=_UNREAD)
        tops = [f.node for f in found if isinstance(f, Match)]
        if not tops:
            return replace(deepest, depth=max(deepest.depth, fitted))
        fitted = sum(1 for _ in parts_of(call))
        nodes = list(dict.fromkeys(user for top in tops for user in top.users))
        if not nodes:
            break
    return Refusal("nothing reads what the pattern fits", reading.user, fitted)


def _depth(refusal: Refusal) -> int:
    return refusal.depth


def _elsewhere(pattern: Pattern, name: str, call: Call, reading: Reading) -> Refusal | None:
    """Return a refusal where the parameter is used in another place than the name stands for."""
    value, user = reading.value, reading.user
    if user.op != "call_function":
        return Refusal("the program returns it, and no operator reads it", user)
    op = ops.canonical_name(user.target)
    if not {op, "_"} & set(operators(pattern)):
        return Refusal(f"it feeds {op}, which is not in the pattern", user)
    has = " or ".join(dict.fromkeys(role for role, node in ops.roles(user) if node is value))
    fits = bool({op, "_"} & set(call.ops))
    if not fits:
        asked = " or ".join(call.ops)
        return Refusal(f"it is {has} of {op}, not an argument of {asked}", user)
    wanted = list(dict.fromkeys(_asked(call, name, user)))
    # Parts of a list have roles of their own; operands that change places have either's.
    known = bool(wanted) and op not in ops.RECURRENT and not commutes(user)
    if not known or set(wanted) & set(has.split(" or ")):
        return None
    return Refusal(f"it is {has} of {op}, not {' or '.join(wanted)}", user, depth=1)


def _asked(call: Call, name: str, user: Node) -> Iterator[str]:
    """Yield the roles that a name stands for in a call."""
    named = ops.schema_arguments(user.target)
    for position, part in enumerate(call.args):
        if _stands(part, name) and position < len(named):
            yield named[position].name
    yield from (role for role, part in call.keywords if _stands(part, name))


def _stands(part: Pattern, name: str) -> bool:
    if isinstance(part, Name):
        return part.name == name
    inner = () if isinstance(part, Call) else inner_parts(part)
    return any(_stands(item, name) for item in inner)
