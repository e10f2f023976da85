"""Which parameters a rule takes, by `select` or by `match`, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fxprune.errors import SelectError
from fxprune.facts import ParamSite
from fxprune.near_misses import Reading, nearest_miss, readers_of
from fxprune.pattern import Match, Pattern, Refusal, parse
from fxprune.pattern_match import candidates
from fxprune.pattern_parts import operators, parts_of
from fxprune.pattern_search import Search
from fxprune.program import Program
from fxprune.reads import parameter_of
from fxprune.recipe import Rule, Select
from fxprune.recipe_match import pruned_names
from fxprune.regexes import Allowance
from fxprune.select_conditions import conditions, likeness
from fxprune.sites import sites_of

__all__ = ["Bound", "Choice", "Verdict", "choice_of", "verdicts", "verdicts_of"]


@dataclass(frozen=True)
class Bound:
    """The parameters that a pattern binds to some of its names.

    Args:
        text: the pattern, as it was written.
        names: the names that count.
    """

    text: str
    names: tuple[str, ...]

    @property
    def pattern(self) -> Pattern:
        """The pattern, parsed."""
        return parse(self.text)


Choice = Select | Bound


@dataclass(frozen=True)
class Verdict:
    """Whether a rule takes a parameter.

    Args:
        site: the parameter.
        refusal: None where it is taken; else the first condition that fails, or the attempt of
            the pattern that came nearest, with the node where there is one.
        held: how many of the rule's conditions, or parts of its pattern, hold.
        nearness: between two of which as much holds, the nearer one has more.
    """

    site: ParamSite
    refusal: Refusal | None
    held: int
    nearness: float = 0.0


def choice_of(rule: Rule) -> Choice:
    """Return what a rule says of the parameters that it takes."""
    if rule.match is not None:
        return Bound(rule.match, pruned_names(rule.match, rule.prune))
    return rule.select or Select()


def verdicts(program: Program, rule: Rule) -> tuple[Verdict, ...]:
    """Return a verdict on each parameter, in parameter order.

    Args:
        program: any Program.
        rule: with `select`, or with `match`.

    Raises:
        SelectError: the rule's pattern can fit in too many ways to try.

    Example:
        >>> import torch, fxprune
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> rule = Rule(match="linear(_, W)", method="identity")
        >>> [str(v.refusal) for v in verdicts(program, rule)]
        ['None', 'it is bias of linear, not weight (node linear)']
    """
    return verdicts_of(program, choice_of(rule))


def verdicts_of(program: Program, choice: Choice) -> tuple[Verdict, ...]:
    """Return a verdict on each parameter, in parameter order.

    Args:
        program: any Program.
        choice: what says which parameters are taken.

    Raises:
        SelectError: the pattern can fit in too many ways to try.
    """
    return tuple(_unless_refused(program, v) for v in _verdicts_of(program, choice))


def _unless_refused(program: Program, verdict: Verdict) -> Verdict:
    """Refuse a parameter that no mask can stand for, whatever the rule says of it."""
    reason = program.captured.refused.get(verdict.site.name)
    return verdict if reason is None else replace(verdict, refusal=Refusal(reason))


def _verdicts_of(program: Program, choice: Choice) -> tuple[Verdict, ...]:
    sites, readers = sites_of(program), readers_of(program)
    if isinstance(choice, Select):
        allowance = Allowance(len(sites))
        return tuple(
            _held_to(choice, site, readers.get(site.name, []), allowance) for site in sites
        )
    taken = _bound(program, choice)
    return tuple(
        Verdict(site, None, sum(1 for _ in parts_of(choice.pattern)))
        if site.name in taken
        else _missed(program, choice, site, readers.get(site.name, []))
        for site in sites
    )


def _held_to(
    select: Select, site: ParamSite, readings: Sequence[Reading], allowance: Allowance
) -> Verdict:
    found = list(conditions(select, site, allowance))
    failed = next((condition for condition in found if not condition.holds), None)
    held = sum(condition.holds for condition in found if condition.asked)
    if failed is None:
        return Verdict(site, None, held)
    node = readings[0].user if failed.of_use and readings else None
    # The later in the order of the conditions a parameter fails, the nearer; then come likenesses.
    nearness = found.index(failed) + sum(c.nearness for c in found) / (len(found) + 1)
    return Verdict(site, Refusal(failed.text, node, held), held, nearness)


def _bound(program: Program, choice: Bound) -> set[str]:
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


def _missed(
    program: Program, choice: Bound, site: ParamSite, readings: Sequence[Reading]
) -> Verdict:
    refusal = nearest_miss(program, choice.pattern, choice.names, readings)
    asked, there = operators(choice.pattern), [op for op, _ in site.uses]
    nearness = max((likeness(a, b) for a in asked for b in there), default=0.0)
    return Verdict(site, refusal, refusal.depth, nearness)
