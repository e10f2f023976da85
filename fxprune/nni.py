"""NNI's config_list as a recipe: what `Recipe.from_nni` does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fxprune.errors import RecipeError
from fxprune.nni_settings import Setting, check_keys, check_pruner, setting_of
from fxprune.nni_where import Name, Where, minus, select_of
from fxprune.recipe_errors import show
from fxprune.regexes import UnboundedError, check_regex

__all__ = ["rules_from_nni"]

# NNI 2's "default" among op_types.
_DEFAULT_TYPES = (
    *("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    *("Linear", "Bilinear", "PReLU", "Embedding", "EmbeddingBag"),
)
_BY = ("op_types", "op_names", "op_names_re", "op_partial_names")
_NOT_BY = ("exclude_op_types", "exclude_op_names", "exclude_op_names_re")


@dataclass(frozen=True)
class _Entry:
    """One entry of a config_list.

    Args:
        at: its index.
        where: the modules that it means.
        settings: what to do with which of their parameters.
        excludes: whether it takes its modules out of all entries.
    """

    at: int
    where: Where
    settings: tuple[Setting, ...]
    excludes: bool

    def takes(self, target: str) -> bool:
        """Whether it decides about a target of its modules."""
        return self.excludes or any(setting.target == target for setting in self.settings)


def rules_from_nni(
    config_list: Sequence[Mapping[str, Any]], *, pruner: str
) -> list[dict[str, Any]]:
    """Return NNI's config_list as the tables of rules; see `fxprune.Recipe.from_nni`.

    Args:
        config_list: the entries.
        pruner: the class that NNI was to be given them.

    Raises:
        RecipeError: names each entry and key that is at fault or has no counterpart.

    Example:
        >>> config_list = [
        ...     {"op_types": ["Linear"], "sparse_ratio": 0.8},
        ...     {"op_names": ["fc3"], "exclude": True},
        ... ]
        >>> rules_from_nni(config_list, pruner="LevelPruner")[0]["select"]
        {'param': ['weight'], 'module': ['Linear'], 'exclude': ['fc3.weight']}
    """
    check_pruner(pruner)
    if not isinstance(config_list, list | tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RecipeError(f"config_list: {show(config_list)} is no list; give NNI's list of dicts")
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
        raise RecipeError(f"{show(config)} is no dict; give op_types or op_names and sparse_ratio")
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
        _compiles("op_partial_names", part)
    names = (
        *map(Name, lists["op_names"]),
        *(Name(pattern, True) for pattern in (*lists["op_names_re"], *parts)),
    )
    without = (
        *map(Name, lists["exclude_op_names"]),
        *(Name(pattern, True) for pattern in lists["exclude_op_names_re"]),
    )
    return Where(types, (names,) if names else (), without)


def _texts(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key)
    if value is None:
        return ()
    items = cast("Sequence[object]", value) if isinstance(value, list | tuple | set) else [value]
    if isinstance(value, str) or not all(isinstance(item, str) for item in items):
        raise RecipeError(f"{key} = {show(value)} is no list of names; give one, as ['fc1']")
    texts = cast("Iterable[str]", items)
    if key.endswith("_re"):
        for pattern in texts:
            _compiles(key, pattern)
    return tuple(texts)


def _compiles(key: str, pattern: str) -> None:
    try:
        check_regex(pattern)
    except UnboundedError as error:
        raise RecipeError(f"{key} has {show(pattern)}, which {error}; make it simpler") from None
    except (re.error, OverflowError, RecursionError) as error:
        raise RecipeError(
            f"{key} has {show(pattern)}, which is no regular expression: {error}"
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
        parts = _left(entry, others)
        reduced = parts != (entry.where,)
        for piece, part in enumerate(parts, 1):
            budget = setting.keys(len(parts) > 1, f"config-{entry.at}")
            name = _name(entry, setting, piece if len(parts) > 1 else None)
            # Other entries may have taken all that the model has of a part.
            spared = {"optional": True} if reduced else {}
            yield {"name": name, "select": select_of(part, setting.target), **budget, **spared}


def _left(entry: _Entry, others: Iterable[_Entry]) -> tuple[Where, ...]:
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
