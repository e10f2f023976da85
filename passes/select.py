"""Select parameters by what they are called, how the graphs use them, and what they stand in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fxprune import ops, tensors
from fxprune.errors import SelectError
from fxprune.facts import ParamSite, Selection
from fxprune.near_misses import readers_of
from fxprune.pattern import Call, Refusal
from fxprune.pattern_parts import parts_of
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.recipe import Select
from fxprune.recipe_errors import show
from fxprune.select_conditions import globbed
from fxprune.selecting import Choice, Verdict, verdicts_of
from fxprune.sites import sites_of
from fxprune.tracing import source_line
from fxprune.wording import nearest

__all__ = ["SelectParameters"]

_SHOWN = 5


@dataclass(frozen=True)
class SelectParameters(Analysis):
    """Select the parameters that any of some choices takes.

    Args:
        rule: the rule's name, for messages.
        selects: the choices, a Select or what a pattern binds, one a rule of a group.
        names: parameters by name, in this order, in the place of choices.
        optional: whether nothing to select is fine.
    """

    name: ClassVar[str] = "select"
    gives: ClassVar = (Selection,)

    rule: str
    selects: tuple[Choice, ...] = ()
    names: tuple[str, ...] = ()
    optional: bool = False

    def run(self, program: Program, facts: Facts) -> Selection:
        """Return the selected parameters, in parameter order or that of `names`.

        Raises:
            SelectError: nothing is selected, and the rule is not optional.
            MissingParameterError: a name does not exist.
        """
        if self.names:
            return self._named(program)
        found = [verdicts_of(program, choice) for choice in self.selects]
        chosen: list[ParamSite] = []
        refused: list[tuple[str, Refusal]] = []
        for of_site in zip(*found, strict=True):
            refusals = [verdict.refusal for verdict in of_site if verdict.refusal is not None]
            if len(refusals) < len(of_site):
                chosen.append(of_site[0].site)
            else:
                refused.append((of_site[0].site.name, refusals[0]))
        if not chosen and not self.optional:
            raise SelectError(self._nothing(program, [v for part in found for v in part]))
        return Selection(tuple(chosen), tuple(refused))

    def _named(self, program: Program) -> Selection:
        sites = {site.name: site for site in sites_of(program)}
        firsts = (
            tensors.owner(program, name) and program.captured.first[name] for name in self.names
        )
        named = tuple(dict.fromkeys(firsts))
        for name in named:
            reason = program.captured.refused.get(name)
            if reason is not None:
                raise SelectError(f"{name!r} cannot be pruned: {reason}")
        return Selection(tuple(sites[name] for name in named))

    def _nothing(self, program: Program, found: Sequence[Verdict]) -> str:
        """Return what to say where nothing is selected: the nearest parameter first."""
        keys = dict.fromkeys("select" if isinstance(c, Select) else "match" for c in self.selects)
        hint = next(
            (f" ({text})" for choice in self.selects for text in _hints(program, choice)), ""
        )
        text = (
            f"rule {self.rule!r} selects nothing{hint}; change its {' or '.join(keys)}, or say "
            "optional = true"
        )
        if not found:
            return f"{text}\n  the program has no parameters"
        first = max(found, key=lambda verdict: (verdict.held, verdict.nearness))
        others = {v.site.name: v for v in found if v.site.name != first.site.name}
        lines = [f"nearest is {first.site.name}: {_told(program, first)}"]
        shown = list(others.values())[: _SHOWN - 1]
        lines += [f"{verdict.site.name}: {verdict.refusal}" for verdict in shown]
        if len(others) > len(shown):
            lines.append(f"... and {len(others) - len(shown)} more")
        return "\n  ".join([text, *lines])


def _told(program: Program, verdict: Verdict) -> str:
    """Return the reason, and the node and the line that it is about, or that read the parameter."""
    reason = verdict.refusal.reason if verdict.refusal is not None else ""
    node = verdict.refusal.node if verdict.refusal is not None else None
    readings = readers_of(program).get(verdict.site.name, ())
    node = node or next((reading.user for reading in readings), None)
    if node is None:
        return reason
    line = source_line(node)
    return f"{reason} (node {node.name}{f', {line}' if line else ''})"


def _hints(program: Program, choice: Choice) -> Iterator[str]:
    """Yield what a choice asks for that does not occur, with the nearest that does."""
    there = _there(program)
    if isinstance(choice, Select):
        asked = [(key, value) for key in there for value in getattr(choice, key)]
    else:
        calls = [part for part in parts_of(choice.pattern) if isinstance(part, Call)]
        missing = [call for call in calls if not {*there["op"], "_"} & set(call.ops)]
        asked = [("op", op) for call in missing for op in call.ops]
    for key, value in asked:
        values = there[key]
        if value in values or (key == "path" and globbed(values, [value])):
            continue
        near = nearest(value, sorted(values), cutoff=0.5)
        mend = f"; did you mean {near!r}?" if near else ""
        yield f"{key} {show(value)} does not occur in the program{mend}"


def _there(program: Program) -> Mapping[str, set[str]]:
    """Return what the keys of a Select could ask for."""
    sites = sites_of(program)
    nodes = (node for graph in program.graphs.values() for node in graph.nodes)
    calls = (node for node in nodes if node.op == "call_function")
    return {
        "op": {ops.canonical_name(node.target) for node in calls},
        "role": {role for site in sites for _, role in site.uses},
        "module": {module for site in sites for module in site.modules},
        "path": {alias for site in sites for alias in site.aliases},
        "param": {alias.rpartition(".")[2] for site in sites for alias in site.aliases},
    }
