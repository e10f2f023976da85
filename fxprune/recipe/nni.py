"""What an entry of NNI's config_list does with the modules it means: how much, and of what."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from fxprune.errors import RecipeError
from fxprune.recipe_errors import choices, show

__all__ = ["Setting", "check_keys", "check_pruner", "setting_of"]

# The granularity that "default" stands for, and the norm that channels are ranked by.
_PRUNERS: dict[str, tuple[str, int]] = {
    "LevelPruner": ("element", 1),
    "L1NormPruner": ("out_channel", 1),
    "L2NormPruner": ("out_channel", 2),
}
_DIMS = {"out_channel": 0, "in_channel": 1}
_RATIOS = ("sparse_ratio", "sparsity", "sparsity_per_layer", "total_sparsity")
_LIMITS = ("max_sparse_ratio", "min_sparse_ratio", "max_sparsity_per_layer")
_KNOWN = (*_RATIOS, *_LIMITS, "global_group_id", "granularity", "apply_method")
_COMMON = ("exclude", "target_names", "target_settings")
_NO_COUNTERPART = {
    "align": "masks are not copied from one parameter to another; give a rule of its own",
    "dependency_group_id": "channels of several layers are not pruned together; leave it out",
    "internal_metric_block": "scores are not taken over blocks of channels; leave it out",
    "sparse_threshold": "a recipe prunes a share, not what is under a threshold; give sparse_ratio",
    "fuse_names": "this is for quantization, not for pruning; leave it out",
    "quant_bits": "this is for quantization, not for pruning; leave the entry out",
    "quant_dtype": "this is for quantization, not for pruning; leave the entry out",
    "quant_scheme": "this is for quantization, not for pruning; leave the entry out",
    "quant_start_step": "this is for quantization, not for pruning; leave the entry out",
    "quant_types": "this is for quantization, not for pruning; leave the entry out",
    "lambda": "this is for distillation, not for pruning; leave the entry out",
    "link": "this is for distillation, not for pruning; leave the entry out",
}


@dataclass(frozen=True)
class Setting:
    """How one parameter of each module is pruned.

    Args:
        target: the parameter's name in the module.
        amount: the share.
        dim: the dimension of the channels; None to prune entries.
        norm: the norm that channels are ranked by.
        group: the name of the budget that it shares with others; None for none.
        total: whether the share is of all its parameters together.
    """

    target: str
    amount: float
    dim: int | None
    norm: int
    group: str | None
    total: bool

    def keys(self, split: bool, name: str) -> dict[str, Any]:
        """Return the keys of a rule, but for its name and selection.

        Args:
            split: whether several rules carry it out.
            name: the budget's name if they then have to share one.
        """
        ranks: dict[str, Any] = {"method": "l1_unstructured", "amount": self.amount}
        if self.dim is not None:
            return {**ranks, "method": "ln_structured", "n": self.norm, "dim": self.dim}
        if self.group is not None:
            return {**ranks, "scope": "global", "group": self.group}
        if not self.total:
            return ranks
        return {**ranks, "scope": "global", **({"group": name} if split else {})}


def check_pruner(pruner: str) -> None:
    """Check that a pruner has a counterpart.

    Raises:
        RecipeError: it has none.
    """
    if pruner not in _PRUNERS:
        raise RecipeError(f"pruner = {show(pruner)} {choices(pruner, list(_PRUNERS))}")


def check_keys(table: Mapping[str, Any], where: Iterable[str]) -> None:
    """Check that an entry's keys are known, and have a counterpart.

    Args:
        table: the entry.
        where: the keys that name modules.

    Raises:
        RecipeError: one line for each that is not, or has none.
    """
    known = [*where, *_COMMON, *_KNOWN]
    faults = [fault for key, value in table.items() if (fault := _key_fault(key, value, known))]
    if table.get("exclude") is True:
        ratios = [key for key in _RATIOS if table.get(key) is not None]
        faults += [f"{key} does not go with exclude; leave one of them out" for key in ratios]
    if faults:
        raise RecipeError("\n".join(faults))


def setting_of(table: Mapping[str, Any], pruner: str) -> tuple[Setting, ...]:
    """Return what an entry does with each parameter that it prunes.

    Raises:
        RecipeError: one line for each value that is at fault or has no counterpart.
    """
    targets, settings = _targets(table), cast("Any", table.get("target_settings") or {})
    if not isinstance(settings, Mapping):
        raise RecipeError(f"target_settings = {show(settings)} is no dict of dicts by target")
    shared = {key: table[key] for key in _KNOWN if table.get(key) is not None}
    found: list[Setting] = []
    faults: list[str] = []
    for target in targets or tuple(cast("Mapping[str, Any]", settings)) or ("weight",):
        own = cast("Any", settings).get(target) or {}
        if target == "bias" and _follows_weight(own, targets):
            continue
        try:
            found.append(_setting(target, own, shared, pruner))
        except RecipeError as error:
            faults += [f"{target}: {line}" if own else line for line in str(error).split("\n")]
    if faults:
        raise RecipeError("\n".join(dict.fromkeys(faults)))
    return tuple(found)


def _key_fault(key: object, value: object, known: list[str]) -> str:
    if value is None and key in _NO_COUNTERPART:
        return ""  # NNI's own default
    if key in _NO_COUNTERPART:
        return f"{key} has no counterpart: {_NO_COUNTERPART[cast('str', key)]}"
    return "" if key in known else f"key {show(key)} {choices(key, known)}"


def _targets(table: Mapping[str, Any]) -> tuple[str, ...]:
    value = table.get("target_names") or ()
    if not isinstance(value, list | tuple) or not all(
        isinstance(item, str) for item in cast("list[object]", value)
    ):
        raise RecipeError(f"target_names = {show(value)} is no list of names; give ['weight']")
    return tuple(cast("list[str]", value))


def _follows_weight(own: Mapping[str, Any], targets: tuple[str, ...]) -> bool:
    """Whether a bias is pruned by NNI's own template alone: where its weight loses a channel."""
    align: Any = own.get("align") or {}
    aligned = not own or (isinstance(align, Mapping) and align.get("target_name") == "weight")
    return aligned and not any(own.get(key) for key in _RATIOS) and targets != ("bias",)


def _setting(
    target: str, own: Mapping[str, Any], shared: Mapping[str, Any], pruner: str
) -> Setting:
    if target.startswith(("_input_", "_output_")):
        raise RecipeError(
            f"target {show(target)} has no counterpart: parameters are pruned, not the inputs and "
            "outputs of modules; leave it out"
        )
    faults = [fault for key, value in own.items() if (fault := _key_fault(key, value, [*_KNOWN]))]
    if faults:
        raise RecipeError("\n".join(faults))
    keys = {**shared, **{key: value for key, value in own.items() if value is not None}}
    if keys.get("apply_method", "mul") != "mul":
        raise RecipeError(
            f"apply_method = {show(keys['apply_method'])} has no counterpart: masks multiply; "
            "leave it out"
        )
    key, amount = _amount(keys)
    default, norm = _PRUNERS[pruner]
    dim = _dim(keys.get("granularity", "default"), default)
    group = keys.get("global_group_id")
    total = key == "total_sparsity"
    if dim is not None and (total or group is not None):
        what = "total_sparsity" if total else "global_group_id"
        raise RecipeError(
            f"{what} has no counterpart for channels, which differ in size from one layer to the "
            "next; leave it out, or prune entries"
        )
    if not isinstance(group, str | int | None) or isinstance(group, bool):
        raise RecipeError(f"global_group_id = {show(group)} is no name; give a text or a number")
    _check_limits(keys, amount, together=total or group is not None)
    return Setting(target, amount, dim, norm, None if group is None else str(group), total)


def _amount(keys: Mapping[str, Any]) -> tuple[str, float]:
    given = [key for key in _RATIOS if key in keys]
    if not given:
        raise RecipeError("sparse_ratio is missing; give a share between 0.0 and 1.0")
    if len(given) > 1:
        raise RecipeError(f"{given[0]} and {given[1]} say the same; leave one of them out")
    return given[0], _share(given[0], keys[given[0]])


def _share(key: str, value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or math.isnan(cast("float", value)) or not 0 <= cast("float", value) <= 1:
        raise RecipeError(f"{key} = {show(value)} is no share; give a number from 0.0 to 1.0")
    return float(cast("float", value))


def _check_limits(keys: Mapping[str, Any], amount: float, *, together: bool) -> None:
    """Check that limits of single parameters change nothing: a recipe has none."""
    for key in [key for key in _LIMITS if key in keys]:
        limit = _share(key, keys[key])
        idle = amount >= limit if key == "min_sparse_ratio" else amount <= limit
        if together or not idle:
            raise RecipeError(
                f"{key} has no counterpart: nothing bounds the share of one parameter within a "
                "budget of several; leave it out, or give its layer an entry of its own"
            )


def _dim(granularity: object, default: str) -> int | None:
    name = default if granularity == "default" else granularity
    if isinstance(name, list | tuple):
        name = _of_block(cast("list[object]", name))
    if name == "element":
        return None
    if name in _DIMS:
        return _DIMS[cast("str", name)]
    why = (
        "per_channel is for the inputs and outputs of modules"
        if name == "per_channel"
        else ("entries or whole channels are pruned, not blocks")
    )
    raise RecipeError(
        f"granularity = {show(granularity)} has no counterpart: {why}; give 'default', "
        "'out_channel' or 'in_channel'"
    )


def _of_block(block: list[object]) -> object:
    """Return what a block is in words: -1 is the whole of a dimension."""
    if block and all(size == 1 for size in block):
        return "element"
    whole = [dim for dim, size in enumerate(block) if size != -1]
    if len(block) > 1 and len(whole) == 1 and block[whole[0]] == 1:
        return {0: "out_channel", 1: "in_channel"}.get(whole[0])
    return None
