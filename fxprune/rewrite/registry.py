"""Passes by name, found through the entry-point group `fxprune.passes`; imported when used."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from fxprune.errors import FxpruneError, PassError
from fxprune.words import choices, did_you_mean, nearest

GROUP = "fxprune.passes"


class _Tables(NamedTuple):
    table: dict[str, str]  # "module:Class" by the pass's name
    broken: dict[str, str]  # what is wrong with entry points that cannot be loaded, by their name
    owners: dict[str, str]  # the distribution by the pass's name


def find(name: str) -> type[Any]:
    """Return the class of a pass; a PassError where there is none or it cannot be imported."""
    table = _table()
    if name not in table:
        hint = did_you_mean(name, table, f"there are {', '.join(table)}")
        broken = "".join(f"\n  {fault}" for fault in _installed().broken.values())
        raise PassError(f"there is no pass {name!r}; {hint}{broken}")
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PassError(
            f"the pass {name!r} cannot be imported from {table[name]}: {error}"
        ) from error


def create(name: str, **options: Any) -> Any:
    """Return a pass with these options; a PassError where it does not take them."""
    found = find(name)
    try:
        return found(**options)
    except FxpruneError:
        raise
    except Exception as error:  # whatever the __post_init__ of a stranger raises
        raise PassError(f"the pass {name!r}: {error}") from error


def names() -> tuple[str, ...]:
    """Return the names of all passes, sorted."""
    return tuple(sorted(_table()))


def _table() -> Mapping[str, str]:
    return _installed().table


@lru_cache(maxsize=1)
def _installed() -> _Tables:
    made = _Tables({}, {}, {})
    found = entry_points(group=GROUP)
    if not found:
        raise PassError(
            f"no passes are installed (entry-point group {GROUP!r} is empty); install fxprune "
            "with pip, with -e in a checkout"
        )
    for entry in found:
        try:
            passes = dict(entry.load())
        except Exception as error:  # noqa: BLE001 - a stranger's module; it must not stop the others
            made.broken[entry.name] = f"the passes of {entry.value} cannot be loaded: {error!r}"
        else:
            _add(made, entry, passes)
    return made


def _add(made: _Tables, entry: Any, passes: Mapping[str, str]) -> None:
    owner = getattr(getattr(entry, "dist", None), "name", entry.name)
    for name, target in passes.items():
        if made.table.get(name, target) != target:
            raise PassError(
                f"two passes are called {name!r}: {made.table[name]} and {target} (entry point "
                f"{entry.name!r}); rename or uninstall one"
            )
        made.table[name] = target
        made.owners.setdefault(name, owner)


NO_DEFAULT = dataclasses.MISSING
_INSTALL = "install the distribution that brings it"


@dataclasses.dataclass(frozen=True)
class PassInfo:
    """What there is to know about a pass."""

    name: str
    kind: str  # "score": ranks units in a rule; "rewrite": edits the graph; else "analysis"
    needs: tuple[str, ...]  # names of facts
    gives: tuple[str, ...]
    promise: str | None  # None for what edits nothing
    options: Mapping[str, Any]  # defaults by name, NO_DEFAULT where one has to be given
    distribution: str
    summary: str


def list_passes() -> tuple[tuple[PassInfo, ...], tuple[str, ...]]:
    """Return all passes by name, and what is wrong with those that cannot be imported."""
    found: list[PassInfo] = []
    broken = [*_installed().broken.values()]
    for name in names():
        try:
            found.append(describe(name))
        except PassError as error:
            broken.append(str(error))
    return tuple(found), tuple(broken)


def describe(name: str) -> PassInfo:
    """Return what there is to know about a pass."""
    found = find(name)
    kind = kind_of(found)
    return PassInfo(
        name=name,
        kind=kind,
        needs=tuple(fact.__name__ for fact in found.needs),
        gives=tuple(fact.__name__ for fact in found.gives),
        promise=found.promise if kind == "rewrite" else None,
        options=_options(found),
        distribution=_installed().owners[name],
        summary=(found.__doc__ or "").strip().partition("\n")[0],
    )


def kind_of(found: type[Any]) -> str:
    """Return whether a class is a "score", a "rewrite" or another "analysis"."""
    # What a pass is made of takes torch, which its own module has loaded.
    from fxprune.rewrite.facts import Scores
    from fxprune.rewrite.passes import Rewrite

    if issubclass(found, Rewrite):
        return "rewrite"
    return "score" if Scores in found.gives and Scores not in found.needs else "analysis"


def score_fault(name: str, known: Iterable[str]) -> str:
    """Return why a rule cannot rank by a score that is none of the known; "" where it can."""
    scores = [*known, *_foreign_scores()]
    if name not in names():
        return choices(name, scores) + ("" if nearest(name, scores) else f"; {_INSTALL}")
    try:
        found = find(name)
    except PassError as error:
        return f"cannot be used: {error}"
    if kind_of(found) == "score":
        return ""
    gives = ", ".join(fact.__name__ for fact in found.gives) or "nothing"
    return f"is a pass, but no score (it gives {gives}); give one of {_quoted(scores)}"


def name_fault(name: str) -> str:
    """Return what to say where no pass has a name; "" where one has. Imports none."""
    if name in names():
        return ""
    hint = did_you_mean(name, names(), f"{_INSTALL}; known: {_quoted(names())}")
    return f"there is no pass '{name}'; {hint}"


def call_fault(name: str, args: Mapping[str, Any]) -> str:
    """Return why a recipe cannot run a pass with these options; "" where it can.

    fxprune's own analyses are steps of rules, which alone decide what these may read and import.
    """
    try:
        found = find(name)
    except PassError as error:
        return str(error)
    if _is_own(name) and kind_of(found) != "rewrite":
        return f"the pass '{name}' is a step of rules; write a [[rule]]"
    return pass_fault(name, args)


def pass_fault(name: str, args: Mapping[str, Any], *, own: Iterable[str] = ()) -> str:
    """Return why a pass does not take args, beside its `own` keys of a rule; "" where it does."""
    options = _options(find(name))
    takes = [option for option in options if option not in own]
    odd = next((option for option in args if option not in takes), None)
    if odd is not None:
        hint = did_you_mean(odd, takes, f"it takes {_quoted(takes) or 'none'}")
        return f"args has '{odd}', which the pass '{name}' does not take; {hint}"
    missing = [o for o in takes if options[o] is NO_DEFAULT and o not in args]
    if missing:
        return f"args lacks '{missing[0]}', which the pass '{name}' needs; add it"
    return _refusal(name, args, [option for option in options if option in own])


def _refusal(name: str, args: Mapping[str, Any], own: Iterable[str]) -> str:
    """Return what a pass itself says of its options."""
    try:
        create(name, **args, **dict.fromkeys(own, 0))
    except PassError as error:
        return str(error)
    return ""


def _options(found: type[Any]) -> dict[str, Any]:
    if not dataclasses.is_dataclass(found):
        return {}
    return {f.name: _default(f) for f in dataclasses.fields(found) if f.init}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _is_own(name: str) -> bool:
    """Tell whether a pass is one of fxprune's own."""
    return _table()[name].startswith(f"{GROUP}.")


def _foreign_scores() -> list[str]:
    """Return the names of other distributions' scores; what cannot be imported is left out."""
    scores: list[str] = []
    for name in names():
        with suppress(PassError):
            if not _is_own(name) and kind_of(find(name)) == "score":
                scores.append(name)
    return scores


def _quoted(known: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in known)
