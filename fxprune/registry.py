"""Passes by name, found through the entry-point group `fxprune.passes`; imported when used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from fxprune.errors import FxpruneError, PassError
from fxprune.wording import did_you_mean

__all__ = ["GROUP", "create", "distribution_of", "faults", "find", "names"]

GROUP = "fxprune.passes"


class _Found(NamedTuple):
    table: dict[str, str]  # "module:Class" by the pass's name
    broken: dict[str, str]  # what is wrong with entry points that cannot be loaded, by their name
    owners: dict[str, str]  # the distribution by the pass's name


def find(name: str) -> type[Any]:
    """Return the class of a pass.

    Args:
        name: as in the table of the distribution that brings the pass.

    Raises:
        PassError: no distribution has a pass of that name, or it cannot be imported.
    """
    table = _table()
    if name not in table:
        hint = did_you_mean(name, table, f"there are {', '.join(table)}")
        broken = "".join(f"\n  {fault}" for fault in faults())
        raise PassError(f"there is no pass {name!r}; {hint}{broken}")
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PassError(
            f"the pass {name!r} cannot be imported from {table[name]}: {error}"
        ) from error


def create(name: str, **options: Any) -> Any:
    """Return a pass with these options.

    Raises:
        PassError: there is no such pass, or it does not take these options.
    """
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


def distribution_of(name: str) -> str:
    """Return the name of the distribution that brings a pass; that of its entry point without one.

    Raises:
        PassError: there is no such pass.

    Example:
        >>> distribution_of("rank")
        'fxprune'
    """
    find(name)
    return _found().owners[name]


def faults() -> tuple[str, ...]:
    """Return what is wrong with entry points whose passes cannot be loaded."""
    return tuple(_found().broken.values())


def _table() -> Mapping[str, str]:
    return _found().table


@lru_cache(maxsize=1)
def _found() -> _Found:
    made = _Found({}, {}, {})
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


def _add(made: _Found, entry: Any, passes: Mapping[str, str]) -> None:
    owner = getattr(getattr(entry, "dist", None), "name", entry.name)
    for name, target in passes.items():
        if made.table.get(name, target) != target:
            raise PassError(
                f"two passes are called {name!r}: {made.table[name]} and {target} (entry point "
                f"{entry.name!r}); rename or uninstall one"
            )
        made.table[name] = target
        made.owners.setdefault(name, owner)
