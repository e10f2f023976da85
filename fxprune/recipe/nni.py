"""NNI's config_list as a recipe: the modules of each entry, and what it does with them."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

from fxprune.errors import RecipeError
from fxprune.support import UnboundedError, check_regex, fits_at_start
from fxprune.words import choices, show

T = TypeVar("T")


class OpName(NamedTuple):
    """A module name, or a regular expression that NNI matches at its start."""

    text: str
    is_regex: bool = False

    def fits(self, name: str) -> bool:
        """Tell whether a module of this name is meant."""
        return fits_at_start(self.text, name) if self.is_regex else self.text == name


@dataclass(frozen=True)
class Where:
    """Modules of some classes, named in each of some sets and in none of others."""

    types: tuple[str, ...] | None  # None for any
    names: tuple[tuple[OpName, ...], ...] = ()
    without: tuple[OpName, ...] = ()

    @property
    def spelt(self) -> tuple[str, ...] | None:
        """The names of all its modules where they are spelt out."""
        for names in self.names:
            if not any(name.is_regex for name in names):
                return tuple(name.text for name in names if self.has(name.text))
        return None

    @property
    def is_empty(self) -> bool:
        """Whether it is plain that no module is meant."""
        barred = any(set(names) <= set(self.without) for names in self.names)
        return self.types == () or self.spelt == () or barred

    def has(self, name: str) -> bool:
        """Whether a module name is among those meant, whatever its class."""
        kept = all(any(each.fits(name) for each in names) for names in self.names)
        return kept and not any(each.fits(name) for each in self.without)


def minus(a: Where, b: Where) -> tuple[Where, ...]:
    """Return what is left of `a` without `b`, as disjoint parts."""
    if b.is_empty or (a.spelt is not None and not any(map(b.has, a.spelt))):
        return (a,)
    if a.types is None and b.types is not None:
        raise RecipeError(
            f"a selection cannot leave out modules by class, as {show(b.types[0])}, where it takes "
            "any class; give op_types"
        )
    found: list[Where] = []
    if a.types is not None and b.types is not None:
        found.append(replace(a, types=tuple(t for t in a.types if t not in b.types)))
    shared = a.types
    if a.types is not None and b.types is not None:
        shared = tuple(t for t in a.types if t in b.types)
    inner = replace(a, types=shared)
    if b.names:  # one set at most: only what is left of an entry has more
        found.append(replace(inner, without=_union(inner.without, b.names[0])))
    if b.without:
        found.append(replace(inner, names=_union(inner.names, (*b.names, b.without))))
    return tuple(part for part in found if not part.is_empty)


def _union(a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys((*a, *b)))


def select_of(where: Where, target: str) -> dict[str, list[str]]:
    """Return the table `select` of a target, as "weight", of modules."""
    keys = {"param": [target]}
    if where.types is not None:
        keys["module"] = list(where.types)
    if where.spelt is not None:
        return {**keys, "path": [_glob(name, target) for name in where.spelt]}
    plain = [name.text for name in where.without if not name.is_regex]
    if plain:
        keys["exclude"] = [_glob(name, target) for name in plain]
    regexes = tuple(name for name in where.without if name.is_regex)
    if where.names or regexes:
        keys["regex"] = list(_regexes(where.names, regexes, target))
    return keys


def _glob(name: str, target: str) -> str:
    return glob.escape(f"{name}.{target}" if name else target)


def _regexes(
    names: tuple[tuple[OpName, ...], ...], without: tuple[OpName, ...], target: str
) -> Iterator[str]:
    """Yield expressions on full names, any of which has to be found."""
    if len(names) == 1 and not without:
        yield from (f"^{part}" for name in names[0] for part in _on_full_name(name, target))
        return
    needed = "".join(f"(?={_either(group, target)})" for group in names)
    barred = f"(?!{_either(without, target)})" if without else ""
    yield f"^{needed}{barred}"


def _either(names: Iterable[OpName], target: str) -> str:
    return "|".join(part for name in names for part in _on_full_name(name, target))


def _on_full_name(name: OpName, target: str) -> Iterator[str]:
    """Yield what a full name begins with where its module's name is meant; see `re.match`."""
    tail = re.escape(target)
    if not name.is_regex:
        yield f"{re.escape(name.text)}\\.{tail}$"
        return
    yield f"{_in_group(name.text, tail)}.*\\.{tail}$"
    if name.fits(""):  # the model itself, whose parameters have no dot in their names
        yield f"{tail}$"


def _in_group(pattern: str, tail: str) -> str:
    """Return an expression on a module's name as part of one on the full name.

    Flags at its start keep to the group, and its ends are those of the module's name.
    """
    flags = re.match(r"\(\?([aiLmsux]+)\)", pattern)
    head = f"(?{flags.group(1)}:" if flags else "(?:"
    rest = pattern[flags.end() :] if flags else pattern
    return f"{head}{''.join(_ends(rest, tail))})"


def _ends(pattern: str, tail: str) -> Iterator[str]:
    in_set = False
    for part in re.findall(r"\\.|\[\^?\]?|.", pattern, flags=re.DOTALL):
        if not in_set and part in ("$", "\\Z"):
            yield f"(?=\\.{tail}$)"
            continue
        in_set = (in_set or part.startswith("[")) and part != "]"
        yield part


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
    """How one parameter of each module is pruned."""

    target: str
    amount: float
    dim: int | None  # of the channels; None to prune entries
    norm: int  # that channels are ranked by
    group: str | None  # the budget that it shares with others
    total: bool  # whether the share is of all its parameters together

    def keys(self, split: bool, name: str) -> dict[str, Any]:
        """Return the keys of a rule but name and selection; a split one shares a group by name."""
        ranks: dict[str, Any] = {"method": "l1_unstructured", "amount": self.amount}
        if self.dim is not None:
            return {**ranks, "method": "ln_structured", "n": self.norm, "dim": self.dim}
        if self.group is not None:
            return {**ranks, "scope": "global", "group": self.group}
        if not self.total:
            return ranks
        return {**ranks, "scope": "global", **({"group": name} if split else {})}


def check_pruner(pruner: str) -> None:
    """Check that a pruner has a counterpart."""
    if pruner not in _PRUNERS:
        raise RecipeError(f"pruner = {show(pruner)} {choices(pruner, list(_PRUNERS))}")


def check_keys(table: Mapping[str, Any], where: Iterable[str]) -> None:
    """Check that an entry's keys are known and have a counterpart; `where` names modules."""
    known = [*where, *_COMMON, *_KNOWN]
    faults = [fault for key, value in table.items() if (fault := _key_fault(key, value, known))]
    if table.get("exclude") is True:
        ratios = [key for key in _RATIOS if table.get(key) is not None]
        faults += [f"{key} does not go with exclude; leave one of them out" for key in ratios]
    if faults:
        raise RecipeError("\n".join(faults))


def setting_of(table: Mapping[str, Any], pruner: str) -> tuple[Setting, ...]:
    """Return what an entry does with each parameter that it prunes."""
    targets, settings = _targets(table), cast("Any", table.get("target_settings") or {})
    if not isinstance(settings, Mapping):
        raise RecipeError(f"target_settings = {show(settings)} is not a dict of dicts by target")
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
        raise RecipeError(f"target_names = {show(value)} is not a list of names; give ['weight']")
    return tuple(cast("list[str]", value))


def _follows_weight(own: Mapping[str, Any], targets: tuple[str, ...]) -> bool:
    """Tell whether NNI's template alone prunes a bias: where its weight loses a channel."""
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
        raise RecipeError(f"global_group_id = {show(group)} is not a name; give a text or a number")
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
        raise RecipeError(f"{key} = {show(value)} is not a share; give a number from 0.0 to 1.0")
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


# NNI 2's "default" among op_types.
_DEFAULT_TYPES = (
    *("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    *("Linear", "Bilinear", "PReLU", "Embedding", "EmbeddingBag"),
)
_BY = ("op_types", "op_names", "op_names_re", "op_partial_names")
_NOT_BY = ("exclude_op_types", "exclude_op_names", "exclude_op_names_re")


@dataclass(frozen=True)
class _Entry:
    """One entry of a config_list."""

    at: int
    where: Where
    settings: tuple[Setting, ...]
    excludes: bool  # whether it takes its modules out of all entries

    def takes(self, target: str) -> bool:
        """Tell whether it decides about a target of its modules."""
        return self.excludes or any(setting.target == target for setting in self.settings)


def rules_from_nni(
    config_list: Sequence[Mapping[str, Any]], *, pruner: str
) -> list[dict[str, Any]]:
    """Return NNI's config_list as the tables of rules; see `fxprune.Recipe.from_nni`."""
    check_pruner(pruner)
    if not isinstance(config_list, list | tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RecipeError(
            f"config_list: {show(config_list)} is not a list; give NNI's list of dicts"
        )
    entries: list[_Entry] = []
    faults: list[str] = []
    for at, config in enumerate(config_list):
        try:
            entries.append(_entry(at, config, pruner))
        except RecipeError as error:
            faults += [f"config_list[{at}]: {line}" for line in str(error).split("\n")]
    if not faults:
        faults += _group_faults(entries)
    if faults:
        raise RecipeError("\n".join(faults))
    rules = [rule for entry in entries for rule in _rules(entry, entries)]
    if not rules:
        raise RecipeError("config_list: nothing is left to prune; give an entry with sparse_ratio")
    return rules


def _entry(at: int, config: object, pruner: str) -> _Entry:
    if not isinstance(config, Mapping):
        raise RecipeError(
            f"{show(config)} is not a dict; give op_types or op_names and sparse_ratio"
        )
    table = dict(cast("Mapping[str, Any]", config))
    check_keys(table, (*_BY, *_NOT_BY))
    excludes = table.get("exclude", False)
    if not isinstance(excludes, bool):
        raise RecipeError(f"exclude = {show(excludes)} is neither True nor False")
    settings = () if excludes else setting_of(table, pruner)
    return _Entry(at, _where(table), settings, excludes)


def _where(table: Mapping[str, Any]) -> Where:
    lists = {key: _texts(table, key) for key in (*_BY, *_NOT_BY)}
    if not any(lists[key] for key in _BY):
        raise RecipeError("no module is named; give op_types, op_names or op_names_re")
    types: tuple[str, ...] | None = None
    if lists["op_types"]:
        given = (_DEFAULT_TYPES if t == "default" else (t,) for t in lists["op_types"])
        listed = dict.fromkeys(t for several in given for t in several)
        types = tuple(t for t in listed if t not in lists["exclude_op_types"])
        if not types:
            raise RecipeError("exclude_op_types leaves none of op_types; leave the entry out")
    elif lists["exclude_op_types"]:
        raise RecipeError(
            "exclude_op_types has no counterpart without op_types, since a selection cannot say of "
            "any class but these; give op_types"
        )
    parts = [f".*{re.escape(part)}" for part in lists["op_partial_names"]]
    for part in parts:
        _check_regex("op_partial_names", part)
    names = (
        *map(OpName, lists["op_names"]),
        *(OpName(pattern, True) for pattern in (*lists["op_names_re"], *parts)),
    )
    without = (
        *map(OpName, lists["exclude_op_names"]),
        *(OpName(pattern, True) for pattern in lists["exclude_op_names_re"]),
    )
    return Where(types, (names,) if names else (), without)


def _texts(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key)
    if value is None:
        return ()
    items = cast("Sequence[object]", value) if isinstance(value, list | tuple | set) else [value]
    if isinstance(value, str) or not all(isinstance(item, str) for item in items):
        raise RecipeError(f"{key} = {show(value)} is not a list of names; give one, as ['fc1']")
    texts = cast("Iterable[str]", items)
    if key.endswith("_re"):
        for pattern in texts:
            _check_regex(key, pattern)
    return tuple(texts)


def _check_regex(key: str, pattern: str) -> None:
    try:
        check_regex(pattern)
    except UnboundedError as error:
        raise RecipeError(f"{key} has {show(pattern)}, which {error}; make it simpler") from None
    except (re.error, OverflowError, RecursionError) as error:
        raise RecipeError(
            f"{key} has {show(pattern)}, which is not a regular expression: {error}"
        ) from None


def _group_faults(entries: Iterable[_Entry]) -> Iterator[str]:
    first: dict[str, tuple[int, float]] = {}
    for entry in entries:
        for setting in entry.settings:
            if setting.group is None:
                continue
            at, amount = first.setdefault(setting.group, (entry.at, setting.amount))
            if amount != setting.amount:
                yield (
                    f"config_list[{entry.at}]: sparse_ratio = {setting.amount} differs from that "
                    f"of config_list[{at}], which is in global_group_id {show(setting.group)} too; "
                    "make them equal or name another group"
                )


def _rules(entry: _Entry, entries: Sequence[_Entry]) -> Iterator[dict[str, Any]]:
    for setting in entry.settings:
        others = [
            other
            for other in entries
            if other.takes(setting.target) and (other.at > entry.at or other.excludes)
        ]
        parts = _remainder(entry, others)
        reduced = parts != (entry.where,)
        for piece, part in enumerate(parts, 1):
            budget = setting.keys(len(parts) > 1, f"config-{entry.at}")
            name = _name(entry, setting, piece if len(parts) > 1 else None)
            # Other entries may have taken all that the model has of a part.
            optional = {"optional": True} if reduced else {}
            yield {"name": name, "select": select_of(part, setting.target), **budget, **optional}


def _remainder(entry: _Entry, others: Iterable[_Entry]) -> tuple[Where, ...]:
    """Return what other entries leave of the modules of an entry, in disjoint parts."""
    parts: tuple[Where, ...] = () if entry.where.is_empty else (entry.where,)
    for other in others:
        try:
            parts = tuple(rest for part in parts for rest in minus(part, other.where))
        except RecipeError as error:
            raise RecipeError(
                f"config_list[{entry.at}]: config_list[{other.at}] decides about some of its "
                f"modules, but {error}"
            ) from None
    return parts


def _name(entry: _Entry, setting: Setting, piece: int | None) -> str:
    target = f"-{setting.target}" if len(entry.settings) > 1 else ""
    return f"config-{entry.at}{target}" + (f"-{piece}" if piece else "")
