"""Dry runs: `plan` and `explain` tell what a recipe would do; nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fxprune.compiler.listening import Observer
from fxprune.compiler.pipeline import stages_of
from fxprune.compiler.run import RecipeLike, Run, facts_given, program_of
from fxprune.errors import FxpruneError, SelectError
from fxprune.program import ParamRecord, Program, RuleRecord, parameters, sites_of, source_line
from fxprune.recipe import Recipe, Rule, Verdict, is_foreign, verdicts
from fxprune.reports import Explanation, ParameterExplanation, Plan, RuleExplanation, recipe_of
from fxprune.rewrite import Refusal
from fxprune.support import kept_generators

_Outcomes = Mapping[str, RuleRecord | str]  # what each rule or its group did, or why it fails


def plan(
    model: nn.Module,
    recipe: RecipeLike,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    batch: Any = 0,
    importance_scores: Mapping[str, torch.Tensor] | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
    allow_imports: bool = False,
) -> Plan:
    """Tell what `prune` would do, without doing it.

    If rules use torch's global generator, the plan matches only the next `prune` call, and says
    which numbers hold for every run. The generator stays where it is.

    Args:
        model: a Program, or a module, which is captured with `args`, `kwargs` and `batch`.
        recipe: a Recipe, a dict, the path of a .toml or .json file, or an earlier Plan.
        args: example positional inputs.
        kwargs: example keyword inputs.
        batch: see `fxprune.capture`.
        importance_scores: see `fxprune.prune`; give them again when the plan is carried out.
        masks: see `fxprune.prune`; give them again when the plan is carried out.
        allow_imports: let the recipe import pruning methods by "package.module:Class".

    Raises:
        RecipeError: the recipe is at fault.
        SelectError: a rule selects nothing.
        AmountError: an amount is more than is alive.
        PassError: the parameters are on the meta device, where they have no values.

    Example:
        >>> rule = {"select": "weight", "method": "l1_unstructured", "amount": 0.25}
        >>> planned = plan(nn.Linear(4, 2), {"rule": [rule]}, args=(torch.zeros(2, 4),))
        >>> planned.rules[0].pruned, planned.mask_bytes, planned.final_bytes
        (2, 32, 40)
    """
    rules = _with_absolute_paths(recipe_of(recipe, allow_imports=allow_imports))
    stages = stages_of(rules)
    program, given = program_of(model, args, kwargs, batch), facts_given(importance_scores, masks)
    observer = Observer()
    run = Run(program, inplace=_may_fork(rules), listeners=[observer])
    with kept_generators(program.parameters()):
        run.stages(stages, given)
    return observer.plan(run.work, rules)


def explain(
    model: nn.Module,
    recipe: RecipeLike,
    *names: str,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    batch: Any = 0,
    importance_scores: Mapping[str, torch.Tensor] | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
    allow_imports: bool = False,
) -> Explanation:
    """Tell for each parameter which rules take it and what they would prune, or why they do not.

    A rule that fails, as one that selects nothing, is explained like the others. Nothing is
    changed, and torch's global generator stays where it is.

    Args:
        model: a Program, or a module, which is captured with `args`, `kwargs` and `batch`.
        recipe: a Recipe, a dict, the path of a .toml or .json file, or a Plan.
        names: parameters, each by any of its names; all when none is named.
        args: example positional inputs.
        kwargs: example keyword inputs.
        batch: see `fxprune.capture`.
        importance_scores: see `fxprune.prune`.
        masks: see `fxprune.prune`.
        allow_imports: let the recipe import pruning methods by "package.module:Class".

    Raises:
        RecipeError: the recipe is at fault.
        MissingParameterError: there is no parameter of that name; suggests the nearest.

    Example:
        >>> rule = {"select": {"op": "linear"}, "method": "l1_unstructured", "amount": 0.25}
        >>> recipe = {"rule": [{**rule, "name": "a"}, {**rule, "name": "b", "select": "bias"}]}
        >>> print(explain(nn.Linear(4, 2), recipe, "weight", args=(torch.zeros(2, 4),)))
        parameter  rule  does    what
        weight     a     takes   l1_unstructured, local, amount 0.25: prunes 2 of 8 living entries
        weight     b     leaves  its name does not match path 'bias'
    """
    rules = recipe_of(recipe, allow_imports=allow_imports)
    program, given = program_of(model, args, kwargs, batch), facts_given(importance_scores, masks)
    for name in names:
        parameters.owner(program, name)  # or it is missing
    first = program.captured.first
    firsts = [first[name] for name in names] or list(parameters.aliases(program))
    found = {str(rule.name): _verdicts(program, rule) for rule in rules.rules}
    outcomes, faults = _try_stages(program, rules, given)
    sites = {site.name: site for site in sites_of(program)}
    rows: list[ParameterExplanation] = []
    for site in (sites[name] for name in dict.fromkeys(firsts)):
        by_rule = [_rule(r, found[str(r.name)][site.name], outcomes) for r in rules.rules]
        shape = tuple(site.shape)
        row = ParameterExplanation(site.name, site.aliases, shape, site.uses, tuple(by_rule))
        rows.append(row)
    return Explanation(tuple(rows), faults)


def _may_fork(recipe: Recipe) -> bool:
    """Tell whether a dry run may share the caller's tensors: code of others could write to them."""
    foreign = any(rule.imported or is_foreign(rule.score_name) for rule in recipe.rules)
    return not foreign and not recipe.passes


def _try_stages(
    program: Program, recipe: Recipe, given: list[Any]
) -> tuple[_Outcomes, tuple[tuple[str, str], ...]]:
    """Run the rules, and go on without those that fail; return the faults, by stage, as well."""
    outcomes: dict[str, RuleRecord | str] = {}
    faults: list[tuple[str, str]] = []
    observer, work, fork = Observer(), program, _may_fork(recipe)
    with kept_generators(program.parameters()):
        for stage in (stage for stage in stages_of(recipe) if stage.rules):
            inplace = fork or work is not program
            try:
                run = Run(work, inplace=inplace, listeners=[observer])
                run.stages([stage], given)
                work, outcome = run.work, observer.rules[-1]
            except FxpruneError as error:
                outcome = str(error)
                faults.append((stage.name, outcome))
            outcomes.update((str(rule.name), outcome) for rule in stage.rules)
    return outcomes, tuple(faults)


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return a recipe that means the same files wherever it is read again."""
    if all(rule.mask is None for rule in recipe.rules):
        return recipe
    rules = (
        rule if rule.mask is None else rule.model_copy(update={"mask": os.path.abspath(rule.mask)})
        for rule in recipe.rules
    )
    return recipe.model_copy(update={"rules": tuple(rules)})


def _verdicts(program: Program, rule: Rule) -> dict[str, Verdict]:
    try:
        found = verdicts(program, rule)
    except SelectError as error:
        found = tuple(Verdict(site, Refusal(str(error)), 0) for site in sites_of(program))
    return {verdict.site.name: verdict for verdict in found}


def _rule(rule: Rule, verdict: Verdict, outcomes: _Outcomes) -> RuleExplanation:
    name, method = str(rule.name), rule.method or f"{rule.score_name}/{rule.granularity_name}"
    row = RuleExplanation(name, method, rule.amount, rule.scope, rule.group, verdict.held)
    refusal, outcome = verdict.refusal, outcomes[name]
    did = None if isinstance(outcome, str) else _of(outcome, verdict.site.name)
    # A coupled rule also prunes what it does not select, where that holds the same channels.
    if refusal is not None and not (rule.coupled and did is not None):
        node = None if refusal.node is None else refusal.node.name
        return replace(row, reason=refusal.reason, node=node, line=source_line(refusal.node))
    if isinstance(outcome, str):
        reason = f"the rule fails: {outcome.splitlines()[0]}"
        return replace(row, matched=True, reason=reason)
    if did is None:
        reasons = dict(outcome.refused)
        return replace(row, reason=reasons.get(verdict.site.name, "it has no channels"))
    units = "channels" if rule.granularity_name == "channel" else "entries"
    reason = None
    if refusal is None and not did.pruned:
        reason = _why_unpruned(rule, outcome, did, units, outcomes)
    counts = {"alive": did.alive, "pruned": did.pruned}
    return replace(row, matched=True, reason=reason, units=units, **counts)


def _of(record: RuleRecord, name: str) -> ParamRecord | None:
    return next((row for row in record.parameters if row.name == name), None)


def _why_unpruned(
    rule: Rule, outcome: RuleRecord, did: ParamRecord, units: str, outcomes: _Outcomes
) -> str:
    """Say why a rule prunes nothing of a parameter that it takes."""
    if did.alive == 0:
        took = ", ".join(_rules_pruning(did.name, outcomes)) or "its mask from before"
        return f"no {units} are alive: {took} took all" if did.units else f"it has no {units}"
    if rule.method == "identity":
        return "identity masks nothing"
    if rule.amount == 0:
        return f"amount is {rule.amount}"
    if rule.score_name is None:
        return "the mask keeps all that is alive"
    if rule.scope == "local" or outcome.pruned == 0:
        alive = did.alive if rule.scope == "local" else outcome.alive
        return f"{rule.amount} of {alive:,} living {units} rounds to 0"
    where = "" if did.threshold is None else f" (threshold {did.threshold:.3g})"
    return (
        f"its scores are not among the {outcome.pruned:,} smallest of the rule's parameters{where}"
    )


def _rules_pruning(name: str, outcomes: _Outcomes) -> list[str]:
    """Return the rules that prune some of a parameter, a group once."""
    records = [outcome for outcome in outcomes.values() if isinstance(outcome, RuleRecord)]
    rows = ((record.name, _of(record, name)) for record in records)
    return list(dict.fromkeys(rule for rule, row in rows if row is not None and row.pruned))
