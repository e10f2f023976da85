"""`plan`: the dry run of a recipe. Nothing is changed."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.compiler.listening import Observer
from fxprune.compiler.pipeline import stages_of
from fxprune.compiler.run import RecipeLike, capture, run_stages
from fxprune.program import Program, fork
from fxprune.recipe import Recipe, is_foreign
from fxprune.reports import Plan, recipe_of
from fxprune.rewrite import GivenMasks, Importance
from fxprune.support import kept_generators


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
    rules = _anchored(recipe_of(recipe, allow_imports=allow_imports))
    stages = stages_of(rules)
    program = model if isinstance(model, Program) else capture(model, args, kwargs, batch=batch)
    given = [Importance(dict(importance_scores or {})), GivenMasks(dict(masks or {}))]
    observer = Observer(program)
    with kept_generators(program.parameters()):
        work = run_stages(work_for(program, rules), stages, given, inplace=True, observer=observer)
    return observer.plan(work, rules)


def work_for(program: Program, recipe: Recipe) -> Program:
    """Return a Program to try a recipe on; what it does there is not seen in the one given.

    Args:
        program: not changed.
        recipe: what will be tried.
    """
    # Only code that is not fxprune's own could write into a tensor that it was given to look at.
    foreign = any(rule.imported or is_foreign(rule.score_name) for rule in recipe.rules)
    return copy.deepcopy(program) if foreign or recipe.passes else fork(program)


def _anchored(recipe: Recipe) -> Recipe:
    """Return a recipe that means the same files wherever it is read again."""
    if all(rule.mask is None for rule in recipe.rules):
        return recipe
    rules = (
        rule if rule.mask is None else rule.model_copy(update={"mask": os.path.abspath(rule.mask)})
        for rule in recipe.rules
    )
    return recipe.model_copy(update={"rules": tuple(rules)})
