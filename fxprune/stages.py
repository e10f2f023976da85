"""From a recipe's rules to pipelines: which passes run, with which options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxprune.pipeline import Pipeline
from fxprune.recipe import PassCall, Recipe, Rule
from fxprune.recipe_ranks import LIMITS, is_foreign
from fxprune.registry import create
from fxprune.selecting import choice_of

__all__ = ["Stage", "stage_of", "stages_of"]


@dataclass(frozen=True)
class Stage:
    """One rule, or the rules of one group, and the pipeline that carries them out.

    Args:
        rules: the rules; more than one where they share a budget.
        pipeline: selection to masks; or the passes that a recipe names.
        calls: these passes, in the words of the recipe; then there are no rules.
    """

    rules: tuple[Rule, ...]
    pipeline: Pipeline
    calls: tuple[PassCall, ...] = ()

    @property
    def name(self) -> str:
        """The rules' names, joined."""
        if self.calls:
            return "passes"
        return "+".join(str(rule.name) for rule in self.rules)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stages of a recipe: rules in order, a group at the place of its first rule.

    The passes that it names are the last stage, and share their facts.
    """
    stages: list[Stage] = []
    grouped: set[str] = set()
    for rule in recipe.rules:
        if rule.group is None:
            stages.append(stage_of((rule,)))
        elif rule.group not in grouped:
            grouped.add(rule.group)
            stages.append(stage_of([r for r in recipe.rules if r.group == rule.group]))
    calls = recipe.passes
    passes = Pipeline(tuple(create(call.name, **call.args) for call in calls))
    return (*stages, Stage((), passes, calls)) if calls else tuple(stages)


def stage_of(rules: Sequence[Rule], *, names: tuple[str, ...] = (), rejoin: bool = False) -> Stage:
    """Return the stage of rules that are carried out together.

    Args:
        rules: of equal method, amount and ties.
        names: parameters to take, in this order, in the place of the rules' selections.
        rejoin: see `fxprune.passes.mask`.
    """
    rule = rules[0]
    select = create(
        "select",
        rule="+".join(str(r.name) for r in rules),
        selects=tuple(choice_of(r) for r in rules),
        names=names,
        optional=all(r.optional for r in rules),
    )
    passes = (select, *_mask_passes(rule), create("mask", rejoin=rejoin))
    return Stage(tuple(rules), Pipeline(passes))


def _mask_passes(rule: Rule) -> tuple[Any, ...]:
    if rule.coupled:
        return _coupled_passes(rule)
    if rule.method in ("identity", "custom_from_mask"):
        return (create("given", file=rule.mask, ones=rule.method == "identity"),)
    if rule.score_name is None:
        options = {"rule": rule.name, "method": rule.method, "args": dict(rule.args or {})}
        return (create("method", **options, amount=rule.amount, scope=rule.scope),)
    rank = create("rank", amount=rule.amount, scope=rule.scope, ties=rule.ties)
    score = create(rule.score_name, **_score_options(rule))
    if is_foreign(rule.score_name):
        return score, create("check", score=rule.score_name, dim=rule.dim), rank, create("cut")
    return score, rank, create("cut")


def _coupled_passes(rule: Rule) -> tuple[Any, ...]:
    couple = create("couple", rule=rule.name, optional=rule.optional)
    limits = {limit: getattr(rule, limit) for limit in LIMITS}
    rank = create("rank_units", amount=rule.amount, scope=rule.scope, **limits)
    end = (rank, create("cut_coupled"))
    if rule.score_name == "norm":
        return (couple, create("unit_norm", n=rule.n, normalize=rule.normalize), *end)
    if rule.score_name == "random":
        return (couple, create("unit_random", seed=rule.seed), *end)
    score = create(str(rule.score_name), **_score_options(rule))
    check = create("check", score=rule.score_name, dim=rule.dim)
    return (couple, score, check, create("unit_mean"), *end)


def _score_options(rule: Rule) -> Mapping[str, Any]:
    dim = {"dim": rule.dim} if rule.granularity_name == "channel" else {}
    if rule.score_name == "norm":
        return {"n": rule.n, **dim}
    if rule.score_name == "random":
        return {"amount": rule.amount, "scope": rule.scope, "seed": rule.seed, **dim}
    return {**rule.args, **dim}
