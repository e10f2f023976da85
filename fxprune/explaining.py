"""`explain`: for each parameter, which rules take it, and what keeps the others from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fxprune import tensors
from fxprune.compiler import RecipeLike, capture, run_stages
from fxprune.errors import FxpruneError, SelectError
from fxprune.explanations import Explanation, ParameterExplanation, RuleExplanation
from fxprune.facts import GivenMasks, Importance, ParamSite
from fxprune.observing import Observer
from fxprune.pattern import Refusal
from fxprune.plan_rows import PlannedCut, PlannedRule
from fxprune.planning import work_for
from fxprune.plans import recipe_of
from fxprune.program import Program
from fxprune.randomness import kept_generators
from fxprune.recipe import Recipe, Rule
from fxprune.selecting import Verdict, verdicts
from fxprune.sites import sites_of
from fxprune.stages import Stage, stages_of
from fxprune.tracing import source_line

__all__ = ["explain"]


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
    program = model if isinstance(model, Program) else capture(model, args, kwargs, batch=batch)
    firsts = [_first(program, name) for name in names] or list(tensors.aliases(program))
    found = {str(rule.name): _verdicts(program, rule) for rule in rules.rules}
    given = [Importance(dict(importance_scores or {})), GivenMasks(dict(masks or {}))]
    trial = _Trial(program, rules, given)
    parameters = tuple(
        _parameter(program, name, [(r, found[str(r.name)][name]) for r in rules.rules], trial)
        for name in dict.fromkeys(firsts)
    )
    return Explanation(parameters, tuple(trial.faults.items()))


class _Trial:
    """A dry run of each stage on its own; one that fails is left out.

    Args:
        program: not changed.
        recipe: what is tried.
        given: facts given from the start.
    """

    def __init__(self, program: Program, recipe: Recipe, given: list[Any]) -> None:
        self.faults: dict[str, str] = {}
        self._stage_of: dict[str, str] = {}
        self._rules: dict[str, PlannedRule] = {}
        self._refused: dict[str, dict[str, str]] = {}
        stages = [stage for stage in stages_of(recipe) if stage.rules]
        for stage in stages:
            self._stage_of.update((str(rule.name), stage.name) for rule in stage.rules)
        with kept_generators(program):
            self._run(program, work_for(program, recipe), stages, given)

    def _run(
        self, program: Program, work: Program, stages: Iterable[Stage], given: list[Any]
    ) -> None:
        observer: Observer | None = None
        for stage in stages:
            try:
                observer = observer or Observer(program)
                run_stages(work, (stage,), given, inplace=True, observer=observer)
                self._rules[stage.name] = observer.rules[-1]
                self._refused[stage.name] = dict(work.captured.records[-1].refused)
            except FxpruneError as error:
                self.faults[stage.name] = str(error)

    def fault(self, rule: Rule) -> str | None:
        """Return why the rule, or its group, fails; None where it does not."""
        return self.faults.get(self._stage_of[str(rule.name)])

    def did(self, rule: Rule) -> PlannedRule:
        """Return what the rule, or its group, did."""
        return self._rules[self._stage_of[str(rule.name)]]

    def cut(self, rule: Rule, name: str) -> PlannedCut | None:
        """Return what the rule, or its group, did to a parameter; None where it left it out."""
        return next((cut for cut in self.did(rule).parameters if cut.name == name), None)

    def reason(self, rule: Rule, name: str) -> str:
        """Return why a rule over coupled channels left out a parameter that it selects."""
        return self._refused[self._stage_of[str(rule.name)]].get(name, "it has no channels")

    def takers(self, name: str) -> list[str]:
        """Return the rules that pruned some of a parameter."""
        cuts = ((rule.name, cut) for rule in self._rules.values() for cut in rule.parameters)
        return [rule for rule, cut in cuts if cut.name == name and cut.pruned]


def _first(program: Program, name: str) -> str:
    """Return a parameter's first name, of any of its names."""
    tensors.owner(program, name)
    return program.captured.first[name]


def _verdicts(program: Program, rule: Rule) -> dict[str, Verdict]:
    try:
        found = verdicts(program, rule)
    except SelectError as error:
        found = tuple(Verdict(site, Refusal(str(error)), 0) for site in sites_of(program))
    return {verdict.site.name: verdict for verdict in found}


def _parameter(
    program: Program, name: str, judged: list[tuple[Rule, Verdict]], trial: _Trial
) -> ParameterExplanation:
    site: ParamSite = judged[0][1].site
    rows = tuple(_rule(rule, verdict, trial) for rule, verdict in judged)
    return ParameterExplanation(name, site.aliases, tuple(site.shape), site.uses, rows)


def _rule(rule: Rule, verdict: Verdict, trial: _Trial) -> RuleExplanation:
    name, method = str(rule.name), rule.method or f"{rule.score_name}/{rule.granularity_name}"
    start = RuleExplanation(name, method, rule.amount, rule.scope, rule.group, verdict.held)
    refusal, fault = verdict.refusal, trial.fault(rule)
    cut = None if fault is not None else trial.cut(rule, verdict.site.name)
    if refusal is not None and rule.coupled and cut is not None:
        return start.took(cut, rule.granularity_name, None)
    if refusal is not None:
        node = None if refusal.node is None else refusal.node.name
        return start.left(refusal.reason, node, source_line(refusal.node))
    if fault is not None:
        return start.failed(f"the rule fails: {fault.splitlines()[0]}")
    if cut is None:
        return start.left(trial.reason(rule, verdict.site.name), None, None)
    spared = _spared(rule, trial.did(rule), cut, trial)
    return start.took(cut, rule.granularity_name, spared)


def _spared(rule: Rule, did: PlannedRule, cut: PlannedCut, trial: _Trial) -> str | None:
    """Say why a rule prunes nothing of a parameter that it takes; None where it prunes some."""
    units = "channels" if rule.granularity_name == "channel" else "entries"
    if cut.pruned:
        return None
    if cut.alive == 0:
        took = ", ".join(trial.takers(cut.name)) or "its mask from before"
        return f"no {units} are alive: {took} took all" if cut.units else f"it has no {units}"
    if rule.method == "identity":
        return "identity masks nothing"
    if rule.amount == 0:
        return f"amount is {rule.amount}"
    if rule.score_name is None:
        return "the mask keeps all that is alive"
    if rule.scope == "local" or did.pruned == 0:
        alive = cut.alive if rule.scope == "local" else did.alive
        return f"{rule.amount} of {alive:,} living {units} rounds to 0"
    where = "" if cut.threshold is None else f" (threshold {cut.threshold:.3g})"
    return f"its scores are not among the {did.pruned:,} smallest of the rule's parameters{where}"
