"""Which parameters a rule takes, by `select` or by `match`, and why not the others."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from torch.fx.node import Node

from fxprune.errors import SelectError
from fxprune.program import ParamSite, Program, commutes, is_product, ops, parameter_of, sites_of
from fxprune.recipe.rule import Rule
from fxprune.recipe.select import Select
from fxprune.rewrite import (
    Call,
    Match,
    Name,
    Pattern,
    Refusal,
    Search,
    Selection,
    calls_around,
    candidates,
    capitals,
    inner_parts,
    operators,
    parse,
    parts_of,
)
from fxprune.support import Allowance, fits_anywhere
from fxprune.words import dtype_name, nearest, show

_SHOWN = 5  # of what a key asks for, and of the parameters that a rule leaves
_COMPARED = 50
_WILD = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Bound:
    """The parameters that a pattern binds to some of its names."""

    text: str
    names: tuple[str, ...]

    @property
    def pattern(self) -> Pattern:
        """The pattern, parsed."""
        return parse(self.text)


Choice = Select | Bound


@dataclass(frozen=True)
class Verdict:
    """Whether a rule takes a parameter."""

    site: ParamSite
    refusal: Refusal | None  # the first condition that fails, or the pattern's nearest attempt
    held: int  # how many of the rule's conditions, or parts of its pattern, hold
    nearness: float = 0.0  # decides between two of which as much holds


def choice_of(rule: Rule) -> Choice:
    """Return what a rule says of the parameters that it takes."""
    if rule.match is not None:
        names = capitals(parse(rule.match)) if rule.prune is None else rule.prune
        return Bound(rule.match, tuple(dict.fromkeys(names)))
    return rule.select or Select()


def verdicts(program: Program, choice: Rule | Choice) -> tuple[Verdict, ...]:
    """Return a verdict on each parameter, in parameter order."""
    choice = choice_of(choice) if isinstance(choice, Rule) else choice
    sites, readers, refused = sites_of(program), readers_of(program), program.captured.refused
    if isinstance(choice, Select):
        return hold_to(choice, sites, refused, readers)
    taken = _bound_names(program, choice)
    found = (
        Verdict(site, None, sum(1 for _ in parts_of(choice.pattern)))
        if site.name in taken
        else _verdict_of_miss(program, choice, site, readers.get(site.name, []))
        for site in sites
    )
    return tuple(_unless_refused(verdict, refused) for verdict in found)


def hold_to(
    select: Select,
    sites: Sequence[ParamSite],
    refused: Mapping[str, str],
    readers: Mapping[str, Sequence[Reading]] = MappingProxyType({}),
) -> tuple[Verdict, ...]:
    """Return a verdict on each parameter of a Program, or each tensor of a file."""
    allowance = Allowance(len(sites))
    found = (_verdict_on(select, site, readers.get(site.name, ()), allowance) for site in sites)
    return tuple(_unless_refused(verdict, refused) for verdict in found)


def select_any(found: Sequence[Sequence[Verdict]]) -> Selection:
    """Select what any of some rules takes, by their verdicts on the same parameters."""
    chosen: list[ParamSite] = []
    left: list[tuple[str, Refusal]] = []
    for of_site in zip(*found, strict=True):
        refusals = [verdict.refusal for verdict in of_site if verdict.refusal is not None]
        if len(refusals) < len(of_site):
            chosen.append(of_site[0].site)
        else:
            left.append((of_site[0].site.name, refusals[0]))
    return Selection(tuple(chosen), tuple(left))


def tell_nothing(
    rule: str,
    choices: Sequence[Choice],
    found: Sequence[Verdict],
    there: Mapping[str, Collection[str]],
    whole: str,
    describe: Callable[[Verdict], str],
) -> str:
    """Return what to say where a rule selects nothing: the nearest parameter first."""
    keys = dict.fromkeys("select" if isinstance(c, Select) else "match" for c in choices)
    hints = (hint for choice in choices for hint in _hints(choice, there, whole))
    hint = next((f" ({text})" for text in hints), "")
    text = (
        f"rule {rule!r} selects nothing{hint}; change its {' or '.join(keys)}, or say "
        "optional = true"
    )
    if not found:
        return f"{text}\n  the {whole} has no parameters"
    first = max(found, key=lambda verdict: (verdict.held, verdict.nearness))
    others = {v.site.name: v for v in found if v.site.name != first.site.name}
    lines = [f"nearest is {first.site.name}: {describe(first)}"]
    shown = list(others.values())[: _SHOWN - 1]
    lines += [f"{verdict.site.name}: {verdict.refusal}" for verdict in shown]
    if len(others) > len(shown):
        lines.append(f"... and {len(others) - len(shown)} more")
    return "\n  ".join([text, *lines])


def _hints(choice: Choice, there: Mapping[str, Collection[str]], whole: str) -> Iterator[str]:
    """Yield what a choice asks for that does not occur, with the nearest that does."""
    if isinstance(choice, Select):
        asked = [(key, value) for key in there for value in getattr(choice, key)]
    else:
        calls = [part for part in parts_of(choice.pattern) if isinstance(part, Call)]
        missing = [call for call in calls if not {*there["op"], "_"} & set(call.ops)]
        asked = [("op", op) for call in missing for op in call.ops]
    for key, value in asked:
        values = there[key]
        if value in values or (key == "path" and _glob_fits(values, [value])):
            continue
        near = nearest(value, sorted(values), cutoff=0.5)
        mend = f"; did you mean {near!r}?" if near else ""
        yield f"{key} {show(value)} does not occur in the {whole}{mend}"


def _unless_refused(verdict: Verdict, refused: Mapping[str, str]) -> Verdict:
    """Refuse a parameter that no mask can stand for, whatever the rule says of it."""
    reason = refused.get(verdict.site.name)
    return verdict if reason is None else replace(verdict, refusal=Refusal(reason))


def _verdict_on(
    select: Select, site: ParamSite, readings: Sequence[Reading], allowance: Allowance
) -> Verdict:
    found = list(_conditions(select, site, allowance))
    failed = next((condition for condition in found if not condition.holds), None)
    held = sum(condition.holds for condition in found if condition.asked)
    if failed is None:
        return Verdict(site, None, held)
    node = readings[0].user if failed.of_use and readings else None
    # The later in the order of the conditions a parameter fails, the nearer; then come likenesses.
    nearness = found.index(failed) + sum(c.nearness for c in found) / (len(found) + 1)
    return Verdict(site, Refusal(failed.text, node, held), held, nearness)


def _bound_names(program: Program, choice: Bound) -> set[str]:
    """Return the first names of the parameters that some match of the pattern binds."""
    found: set[str | None] = set()
    for graph in program.graphs.values():
        search = Search(program, products=False)
        for node in candidates(choice.pattern, graph):
            for way in search.ways(choice.pattern, node):
                bindings = way.bindings if isinstance(way, Match) else {}
                bound = (bindings[name] for name in choice.names if name in bindings)
                found.update(parameter_of(program, value) for value in bound)
        if search.is_cut:
            raise SelectError(
                f"match = {choice.text!r} can fit in too many ways to try; name fewer operands, or "
                "say more about them"
            )
    return {name for name in found if name is not None}


def _verdict_of_miss(
    program: Program, choice: Bound, site: ParamSite, readings: Sequence[Reading]
) -> Verdict:
    refusal = _nearest_miss(program, choice.pattern, choice.names, readings)
    asked, there = operators(choice.pattern), [op for op, _ in site.uses]
    nearness = max((_likeness(a, b) for a in asked for b in there), default=0.0)
    return Verdict(site, refusal, refusal.depth, nearness)


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


def _nearest_miss(
    program: Program, pattern: Pattern, names: tuple[str, ...], readings: Sequence[Reading]
) -> Refusal:
    """Return the refusal of the attempt that came deepest, of those with one parameter."""
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
    misfit = _misplacement(pattern, name, calls[0], reading)
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


def _misplacement(pattern: Pattern, name: str, call: Call, reading: Reading) -> Refusal | None:
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
    wanted = list(dict.fromkeys(_roles_of(call, name, user)))
    # Parts of a list have roles of their own; operands that change places have either's.
    known = bool(wanted) and op not in ops.RECURRENT and not commutes(user)
    if not known or set(wanted) & set(has.split(" or ")):
        return None
    return Refusal(f"it is {has} of {op}, not {' or '.join(wanted)}", user, depth=1)


def _roles_of(call: Call, name: str, user: Node) -> Iterator[str]:
    """Yield the roles that a name stands for in a call."""
    named = ops.schema_arguments(user.target)
    for position, part in enumerate(call.args):
        if _stands_for(part, name) and position < len(named):
            yield named[position].name
    yield from (role for role, part in call.keywords if _stands_for(part, name))


def _stands_for(part: Pattern, name: str) -> bool:
    if isinstance(part, Name):
        return part.name == name
    inner = () if isinstance(part, Call) else inner_parts(part)
    return any(_stands_for(item, name) for item in inner)


@dataclass(frozen=True)
class _Condition:
    """A key of a Select, held to one parameter: what it asks for, and what there is."""

    holds: bool
    text: str  # what to say where it does not hold
    asked: tuple[Any, ...]  # nothing where the key leaves out
    there: tuple[Any, ...]
    of_use: bool = False  # whether it is about how the graphs use the parameter

    @property
    def nearness(self) -> float:
        """How near the parameter comes: 1.0 where the condition holds."""
        pairs = ((a, b) for a in self.asked[:_COMPARED] for b in self.there)
        return 1.0 if self.holds else max((_likeness(a, b) for a, b in pairs), default=0.0)


def _conditions(
    select: Select, site: ParamSite, allowance: Allowance | None = None
) -> Iterator[_Condition]:
    """Yield the conditions that a Select makes, in the order in which messages give them."""
    if select.op or select.role:
        yield from _use_conditions(select, site)
    if select.module:
        there = bool(set(select.module) & set(site.modules))
        text = f"its module is a {_either(site.modules)}, not a {_either(select.module)}"
        yield _Condition(there, text, select.module, site.modules)
    yield from _name_conditions(select, site, allowance)
    yield from _tensor_conditions(select, site)


def _glob_fits(names: Iterable[str], globs: Iterable[str]) -> bool:
    """Tell whether any glob fits any name."""
    return any(map(_fitting(tuple(globs)), names))


@lru_cache(maxsize=64)
def _fitting(globs: tuple[str, ...]) -> Callable[[str], bool]:
    """Return what tells whether any glob fits a name; names that are spelt out are looked up."""
    whole = frozenset(glob for glob in globs if not _WILD.search(glob))
    wild = [re.compile(fnmatch.translate(glob)).match for glob in globs if glob not in whole]
    return lambda name: name in whole or any(match(name) is not None for match in wild)


def _use_conditions(select: Select, site: ParamSite) -> Iterator[_Condition]:
    used = ", ".join(f"{role} of {op}" for op, role in site.uses) or "nothing"
    asked = f"{_either(select.role) or 'any argument'} of {_either(select.op) or 'any operator'}"
    text = f"it is {used}, not {asked}"
    fits = [(op, role) for op, role in site.uses if not select.op or op in select.op]
    if select.op:
        yield _Condition(bool(fits), text, select.op, tuple(op for op, _ in site.uses), True)
    if select.role:
        roles = tuple(role for _, role in fits or site.uses)
        yield _Condition(bool(set(roles) & set(select.role)), text, select.role, roles, True)


def _name_conditions(
    select: Select, site: ParamSite, allowance: Allowance | None
) -> Iterator[_Condition]:
    if select.path:
        text = f"its name does not match path {_either(select.path, show)}"
        yield _Condition(_glob_fits(site.aliases, select.path), text, select.path, site.aliases)
    if select.regex:
        pairs = ((regex, alias) for regex in select.regex for alias in site.aliases)
        fits = any(fits_anywhere(regex, alias, allowance) for regex, alias in pairs)
        text = f"its name does not match regex {_either(select.regex, show)}"
        yield _Condition(fits, text, select.regex, site.aliases)
    attributes = tuple(sorted({alias.rpartition(".")[2] for alias in site.aliases}))
    if select.param:
        text = f"its attribute is {_either(attributes)}, not {_either(select.param)}"
        yield _Condition(bool(set(select.param) & set(attributes)), text, select.param, attributes)
    if select.exclude:
        text = f"exclude {_either(select.exclude, show)} leaves it out"
        yield _Condition(not _glob_fits(site.aliases, select.exclude), text, (), ())


def _tensor_conditions(select: Select, site: ParamSite) -> Iterator[_Condition]:
    if select.min_numel is not None:
        least = select.min_numel
        text = f"it has {site.numel} entries, fewer than min_numel = {least}"
        yield _Condition(site.numel >= least, text, (least,), (site.numel,))
    rank = len(site.shape)
    if select.ndim:
        text = f"it has {rank} dimensions, not {_either(select.ndim, str)}"
        yield _Condition(rank in select.ndim, text, select.ndim, (rank,))
    kind = dtype_name(site.dtype)
    if select.dtype:
        text = f"its dtype is {kind}, not {_either(select.dtype)}"
        yield _Condition(kind in select.dtype, text, select.dtype, (kind,))


def _either(words: Sequence[Any], show_word: Callable[[Any], str] = str) -> str:
    shown = [show_word(word) for word in words[:_SHOWN]]
    more = len(words) - len(shown)
    return " or ".join([*shown, *[f"{more} more"] * (more > 0)])


def _likeness(asked: Any, there: Any) -> float:
    """Return how alike two names or counts are: 1.0 where they are equal."""
    if isinstance(asked, int):
        return min(asked + 1, there + 1) / max(asked + 1, there + 1)
    return SequenceMatcher(None, str(asked), str(there)).ratio()
