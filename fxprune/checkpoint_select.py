"""Which tensors of a checkpoint a rule takes; what needs a graph is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fxprune.checkpoint_files import INDEX, SUFFIX, Checkpoint
from fxprune.checkpoint_weights import FLOATS, Weight
from fxprune.errors import RecipeError, SelectError
from fxprune.facts import ParamSite
from fxprune.recipe import Recipe, Rule, Select
from fxprune.recipe_errors import show
from fxprune.regexes import Allowance
from fxprune.room import Room
from fxprune.select_conditions import conditions, globbed
from fxprune.wording import dtype_name, nearest

__all__ = ["check_recipe", "selected", "weights_of"]

_KEYS = ("op", "role", "module")
_INSTEAD = "select by path, regex, param, exclude, ndim, dtype or min_numel"
_SHOWN = 5


def check_recipe(recipe: Recipe) -> None:
    """Check that a recipe asks for nothing that a file of tensors does not have.

    Raises:
        RecipeError: names the rule and the key.
    """
    for rule in recipe.rules:
        _check_rule(rule)
    for key in ("passes", "shrink"):
        if getattr(recipe, key, None):
            word = "pass" if key == "passes" else key
            raise RecipeError(
                f"[{word}] edits a graph, and a checkpoint has none; leave it out, or compile the "
                "model"
            )


def weights_of(checkpoint: Checkpoint, room: Room) -> tuple[dict[str, Weight], dict[str, str]]:
    """Return the tensors that can be pruned, by name, and why the others cannot.

    Args:
        checkpoint: the files.
        room: buffers.
    """
    weights: dict[str, Weight] = {}
    others: dict[str, str] = {}
    known = ", ".join(dtype_name(dtype) for dtype in FLOATS)
    for name, (shard, stored) in checkpoint.tensors.items():
        if stored.dtype in FLOATS:
            weights[name] = Weight(shard, stored, stored.dtype, room)
        else:
            kind = stored.kind if stored.dtype is None else dtype_name(stored.dtype)
            others[name] = f"its dtype is {kind}; of a checkpoint {known} are pruned"
    return weights, others


def selected(
    rules: Sequence[Rule], weights: Mapping[str, Weight], others: Mapping[str, str]
) -> tuple[list[Weight], tuple[tuple[str, str], ...]]:
    """Return the tensors that any of some rules takes, and (name, reason) of what was left.

    Args:
        rules: one, or those of a group.
        weights: all tensors that can be pruned, in order.
        others: why others cannot.

    Raises:
        SelectError: nothing is selected, and a rule is not optional.
    """
    chosen, left = list[Weight](), dict(others)
    allowances = [Allowance(len(weights)) for _ in rules]
    for name, weight in weights.items():
        reasons = [
            _first_failure(rule.select, weight.site, allowance)
            for rule, allowance in zip(rules, allowances, strict=True)
        ]
        if "" in reasons:
            chosen.append(weight)
        else:
            left[name] = reasons[0]
    refused = tuple(left.items())
    if chosen or all(rule.optional for rule in rules):
        return chosen, refused
    shown = "".join(f"\n  {name}: {reason}" for name, reason in refused[:_SHOWN])
    more = f"\n  ... and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    name = "+".join(str(rule.name) for rule in rules)
    raise SelectError(
        f"rule {name!r} selects nothing{_nearest(rules, left)}; change its select, or say optional "
        f"= true{shown}{more}"
    )


def _check_rule(rule: Rule) -> None:
    where = f"rule {rule.name!r}"
    select: Any = rule.select
    asked = [key for key in ("match", "prune") if getattr(rule, key, None)]
    asked += [f"select.{key}" for key in _KEYS if getattr(select, key, None)]
    if asked or select is None:
        need = "need" if len(asked) > 1 else "needs"
        raise RecipeError(
            f"{where}: {' and '.join(asked) or 'match'} {need} the model's graph, and a checkpoint "
            f"has none; {_INSTEAD}"
        )
    if rule.coupled:
        raise RecipeError(
            f"{where}: coupled needs the model's graph, which tells what channels go together, and "
            "a checkpoint has none; leave it out, or compile the model"
        )
    if rule.imported or rule.score_name not in (None, "magnitude", "norm", "random"):
        raise RecipeError(
            f"{where}: {rule.method or rule.score_name} gets whole tensors and masks, which a "
            "checkpoint is pruned without; take a method of torch.nn.utils.prune, or prune the "
            "model in memory"
        )
    if rule.method == "custom_from_mask" and rule.mask is None:
        raise RecipeError(f"{where}: mask is missing; give the path of a .safetensors file")
    if rule.mask is not None and not rule.mask.endswith((SUFFIX, INDEX)):
        raise RecipeError(
            f"{where}: mask = {show(rule.mask)} is not read for a checkpoint; give masks by tensor "
            f"name in a {SUFFIX} file, as fxprune.masks writes them"
        )


def _first_failure(select: Select | None, site: ParamSite, allowance: Allowance) -> str:
    if select is None:
        return "it has no select"
    held = conditions(select, site, allowance)
    return next((found.text for found in held if not found.holds), "")


def _nearest(rules: Iterable[Rule], names: Iterable[str]) -> str:
    known = list(names)
    globs = (glob for rule in rules if rule.select for glob in rule.select.path)
    for glob in globs:
        if not globbed(known, [glob]):
            near = nearest(glob, known, cutoff=0.5)
            hint = f"; did you mean {near!r}?" if near else ""
            return f" (path {glob!r} fits no tensor{hint})"
    return ""
