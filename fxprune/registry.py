"""Passes by name, found through the entry-point group `fxprune.passes`; imported when used."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from fxprune.errors import PassError

__all__ = ["GROUP", "create", "find", "names"]

GROUP = "fxprune.passes"


def find(name: str) -> type[Any]:
    """Return the class of a pass.

    Args:
        name: as in the table of the distribution that brings the pass.

    Raises:
        PassError: no distribution has a pass of that name, or it cannot be imported.
    """
    table = _table()
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(table)}"
        broken = "".join(f"\n  {fault}" for fault in _broken().values())
        raise PassError(f"there is no pass {name!r}{hint}{broken}")
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
    except TypeError as error:
        raise PassError(f"the pass {name!r}: {error}") from error


def names() -> tuple[str, ...]:
    """Return the names of all passes, sorted."""
    return tuple(sorted(_table()))


def _table() -> Mapping[str, str]:
    return _found()[0]


def _broken() -> Mapping[str, str]:
    """Return what is wrong with entry points that cannot be loaded, by their name."""
    return _found()[1]


@lru_cache(maxsize=1)
def _found() -> tuple[Mapping[str, str], Mapping[str, str]]:
    table, broken = dict[str, str](), dict[str, str]()
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
            broken[entry.name] = f"the passes of {entry.value} cannot be loaded: {error!r}"
        else:
            _add(table, entry.name, passes)
    return table, broken


def _add(table: dict[str, str], entry: str, passes: Mapping[str, str]) -> None:
    for name, target in passes.items():
        if table.get(name, target) != target:
            raise PassError(
                f"two passes are called {name!r}: {table[name]} and {target} (entry point "
                f"{entry!r}); rename or uninstall one"
            )
        table[name] = target
