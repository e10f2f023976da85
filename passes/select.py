"""Select parameters by their names, how the graphs use them, and the pattern that they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from fxprune.errors import SelectError
from fxprune.program import Program, ops, parameters, sites_of, source_line
from fxprune.recipe import Choice, Verdict, readers_of, select_any, tell_nothing, verdicts
from fxprune.rewrite import Analysis, Facts, Selection


@dataclass(frozen=True)
class SelectParameters(Analysis):
    """Select the parameters that any of some choices takes.

    A choice is a Select or what a pattern binds, one a rule of a group; `names` stand in their
    place. With `optional`, nothing to select is fine.
    """

    name: ClassVar[str] = "select"
    gives: ClassVar = (Selection,)

    rule: str
    selects: tuple[Choice, ...] = ()
    names: tuple[str, ...] = ()
    optional: bool = False

    def run(self, program: Program, facts: Facts) -> Selection:
        """Return the selected parameters, in parameter order or that of `names`."""
        if self.names:
            return self._named(program)
        found = [verdicts(program, choice) for choice in self.selects]
        selection = select_any(found)
        if not selection.sites and not self.optional:
            every = [verdict for of_choice in found for verdict in of_choice]
            there, describe = _there(program), partial(_describe, program)
            text = tell_nothing(self.rule, self.selects, every, there, "program", describe)
            raise SelectError(text)
        return selection

    def _named(self, program: Program) -> Selection:
        sites = {site.name: site for site in sites_of(program)}
        firsts = (
            parameters.owner(program, name) and program.captured.first[name] for name in self.names
        )
        named = tuple(dict.fromkeys(firsts))
        for name in named:
            reason = program.captured.refused.get(name)
            if reason is not None:
                raise SelectError(f"{name!r} cannot be pruned: {reason}")
        return Selection(tuple(sites[name] for name in named))


def _describe(program: Program, verdict: Verdict) -> str:
    """Return the reason, and the node and the line that it is about, or that read the parameter."""
    reason = verdict.refusal.reason if verdict.refusal is not None else ""
    node = verdict.refusal.node if verdict.refusal is not None else None
    readings = readers_of(program).get(verdict.site.name, ())
    node = node or next((reading.user for reading in readings), None)
    if node is None:
        return reason
    line = source_line(node)
    return f"{reason} (node {node.name}{f', {line}' if line else ''})"


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
