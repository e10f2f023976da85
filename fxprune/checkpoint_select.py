"""Which tensors of a checkpoint a rule takes; what needs a graph is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxprune.checkpoint_files import INDEX, SUFFIX, Checkpoint
from fxprune.checkpoint_weights import FLOATS, Weight
from fxprune.errors import RecipeError, SelectError
from fxprune.facts import ParamSite, Selection
from fxprune.recipe import Recipe, Rule, Select
from fxprune.recipe_errors import show
from fxprune.room import Room
from fxprune.selecting import hold_to, select_any, tell_nothing
from fxprune.wording import dtype_name

__all__ = ["check_recipe", "select_tensors", "weights_of"]

_KEYS = ("op", "role", "module")
_INSTEAD = "select by path, regex, param, exclude, ndim, dtype or min_numel"


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
    refused: dict[str, str] = {}
    known = ", ".join(dtype_name(dtype) for dtype in FLOATS)
    for name, (shard, stored) in checkpoint.tensors.items():
        if stored.dtype in FLOATS:
            weights[name] = Weight(shard, stored, stored.dtype, room)
        else:
            kind = stored.kind if stored.dtype is None else dtype_name(stored.dtype)
            refused[name] = f"its dtype is {kind}; of a checkpoint {known} are pruned"
    return weights, refused


def select_tensors(
    rules: Sequence[Rule], sites: Sequence[ParamSite], refused: Mapping[str, str]
) -> Selection:
    """Select the tensors that any of some rules takes.

    Args:
        rules: one, or those of a group.
        sites: all tensors, in order.
        refused: why some of them cannot be pruned, by name.

    Raises:
        SelectError: nothing is selected, and a rule is not optional.
    """
    selects = [rule.select or Select() for rule in rules]
    found = [hold_to(select, sites, refused) for select in selects]
    selection = select_any(found)
    if selection.sites or all(rule.optional for rule in rules):
        return selection
    there = {
        "path": {site.name for site in sites},
        "param": {site.name.rpartition(".")[2] for site in sites},
    }
    every = [verdict for verdicts in found for verdict in verdicts]
    name = "+".join(str(rule.name) for rule in rules)
    raise SelectError(
        tell_nothing(name, selects, every, there, "checkpoint", lambda v: str(v.refusal))
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
