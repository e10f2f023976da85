"""The conditions of a `Select`, held to one parameter, and what to say where one fails."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from fxprune.facts import ParamSite
from fxprune.recipe_errors import show
from fxprune.recipe_select import Select
from fxprune.regexes import Allowance, found_in
from fxprune.wording import dtype_name

__all__ = ["Condition", "conditions", "globbed", "likeness"]

_SHOWN = 5  # of what a key asks for
_COMPARED = 50
_WILD = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Condition:
    """A key of a Select, held to one parameter.

    Args:
        holds: whether the parameter fits.
        text: what to say where it does not.
        asked: what the key asks for; nothing where it leaves out.
        there: what the parameter has.
        of_use: whether it is about how the graphs use the parameter.
    """

    holds: bool
    text: str
    asked: tuple[Any, ...]
    there: tuple[Any, ...]
    of_use: bool = False

    @property
    def nearness(self) -> float:
        """How near the parameter comes: 1.0 where the condition holds."""
        pairs = ((a, b) for a in self.asked[:_COMPARED] for b in self.there)
        return 1.0 if self.holds else max((likeness(a, b) for a, b in pairs), default=0.0)


def conditions(
    select: Select, site: ParamSite, allowance: Allowance | None = None
) -> Iterator[Condition]:
    """Yield the conditions that a Select makes, in the order in which they are told.

    Args:
        select: which parameters a rule takes.
        site: a parameter.
        allowance: of steps for regular expressions on all parameters.

    Raises:
        SelectError: the regular expressions take too long.
    """
    if select.op or select.role:
        yield from _uses(select, site)
    if select.module:
        there = bool(set(select.module) & set(site.modules))
        text = f"its module is a {_either(site.modules)}, not a {_either(select.module)}"
        yield Condition(there, text, select.module, site.modules)
    yield from _names(select, site, allowance)
    yield from _tensors(select, site)


def globbed(names: Iterable[str], globs: Iterable[str]) -> bool:
    """Tell whether any glob fits any name."""
    return any(map(_fitting(tuple(globs)), names))


@lru_cache(maxsize=64)
def _fitting(globs: tuple[str, ...]) -> Callable[[str], bool]:
    """Return what tells whether any glob fits a name; names that are spelt out are looked up."""
    whole = frozenset(glob for glob in globs if not _WILD.search(glob))
    wild = [re.compile(fnmatch.translate(glob)).match for glob in globs if glob not in whole]
    return lambda name: name in whole or any(match(name) is not None for match in wild)


def _uses(select: Select, site: ParamSite) -> Iterator[Condition]:
    used = ", ".join(f"{role} of {op}" for op, role in site.uses) or "nothing"
    asked = f"{_either(select.role) or 'any argument'} of {_either(select.op) or 'any operator'}"
    text = f"it is {used}, not {asked}"
    fits = [(op, role) for op, role in site.uses if not select.op or op in select.op]
    if select.op:
        yield Condition(bool(fits), text, select.op, tuple(op for op, _ in site.uses), True)
    if select.role:
        roles = tuple(role for _, role in fits or site.uses)
        yield Condition(bool(set(roles) & set(select.role)), text, select.role, roles, True)


def _names(select: Select, site: ParamSite, allowance: Allowance | None) -> Iterator[Condition]:
    if select.path:
        text = f"its name does not match path {_either(select.path, show)}"
        yield Condition(globbed(site.aliases, select.path), text, select.path, site.aliases)
    if select.regex:
        found = any(found_in(r, alias, allowance) for r in select.regex for alias in site.aliases)
        text = f"its name does not match regex {_either(select.regex, show)}"
        yield Condition(found, text, select.regex, site.aliases)
    attributes = tuple(sorted({alias.rpartition(".")[2] for alias in site.aliases}))
    if select.param:
        text = f"its attribute is {_either(attributes)}, not {_either(select.param)}"
        yield Condition(bool(set(select.param) & set(attributes)), text, select.param, attributes)
    if select.exclude:
        text = f"exclude {_either(select.exclude, show)} leaves it out"
        yield Condition(not globbed(site.aliases, select.exclude), text, (), ())


def _tensors(select: Select, site: ParamSite) -> Iterator[Condition]:
    if select.min_numel is not None:
        least = select.min_numel
        text = f"it has {site.numel} entries, fewer than min_numel = {least}"
        yield Condition(site.numel >= least, text, (least,), (site.numel,))
    rank = len(site.shape)
    if select.ndim:
        text = f"it has {rank} dimensions, not {_either(select.ndim, str)}"
        yield Condition(rank in select.ndim, text, select.ndim, (rank,))
    kind = dtype_name(site.dtype)
    if select.dtype:
        text = f"its dtype is {kind}, not {_either(select.dtype)}"
        yield Condition(kind in select.dtype, text, select.dtype, (kind,))


def _either(words: Sequence[Any], told: Callable[[Any], str] = str) -> str:
    shown = [told(word) for word in words[:_SHOWN]]
    more = len(words) - len(shown)
    return " or ".join([*shown, *[f"{more} more"] * (more > 0)])


def likeness(asked: Any, there: Any) -> float:
    """Return how alike two names or counts are: 1.0 where they are equal."""
    if isinstance(asked, int):
        return min(asked + 1, there + 1) / max(asked + 1, there + 1)
    return SequenceMatcher(None, str(asked), str(there)).ratio()
