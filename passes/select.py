"""Select parameters by what they are called and how the graphs use them."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from fxprune import tensors
from fxprune.errors import SelectError
from fxprune.facts import ParamSite, Selection
from fxprune.pattern import Refusal
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.recipe import Select
from fxprune.sites import sites_of

__all__ = ["SelectParameters"]


@dataclass(frozen=True)
class SelectParameters(Analysis):
    """Select the parameters that any of some selections takes.

    Args:
        rule: the rule's name, for messages.
        selects: the selections, one a rule of a group.
        names: parameters by name, in this order, in the place of selections.
        optional: whether nothing to select is fine.
    """

    name: ClassVar[str] = "select"
    gives: ClassVar = (Selection,)

    rule: str
    selects: tuple[Select, ...] = ()
    names: tuple[str, ...] = ()
    optional: bool = False

    def run(self, program: Program, facts: Facts) -> Selection:
        """Return the selected parameters, in parameter order or that of `names`.

        Raises:
            SelectError: nothing is selected, and the rule is not optional.
            MissingParameterError: a name does not exist.
        """
        sites = {site.name: site for site in sites_of(program)}
        if self.names:
            firsts = (
                tensors.owner(program, name) and program.captured.first[name] for name in self.names
            )
            return Selection(tuple(sites[name] for name in dict.fromkeys(firsts)))
        chosen: list[ParamSite] = []
        refused: list[tuple[str, Refusal]] = []
        for site in sites.values():
            reasons = [_first_failure(select, site) for select in self.selects]
            if None in reasons:
                chosen.append(site)
            else:
                refused.append((site.name, Refusal(next(filter(None, reasons), ""))))
        if not chosen and not self.optional:
            raise SelectError(self._nothing(sites.values(), refused))
        return Selection(tuple(chosen), tuple(refused))

    def _nothing(self, sites: Iterable[ParamSite], refused: list[tuple[str, Refusal]]) -> str:
        hint = _nearest(self.selects, list(sites))
        shown = "".join(f"\n  {name}: {refusal.reason}" for name, refusal in refused[:5])
        more = f"\n  ... and {len(refused) - 5} more" if len(refused) > 5 else ""
        return (
            f"rule {self.rule!r} selects nothing{hint}; change its select, or say optional = true"
            f"{shown}{more}"
        )


def _first_failure(select: Select, site: ParamSite) -> str | None:
    """Return the first condition that fails, in words; None when all hold."""
    return next((text for holds, text in _conditions(select, site) if not holds), None)


def _conditions(select: Select, site: ParamSite) -> Iterator[tuple[bool, str]]:
    """Yield whether each condition holds, in order, with what to say where it does not."""
    used = ", ".join(f"{role} of {op}" for op, role in site.uses) or "nothing"
    asked = f"{_either(select.role) or 'any argument'} of {_either(select.op) or 'any operator'}"
    yield _uses(select, site), f"it is {used}, not {asked}"
    there = bool(set(select.module) & set(site.modules))
    text = f"its module is a {_either(site.modules)}, not a {_either(select.module)}"
    yield not select.module or there, text
    yield from _names(select, site)
    text = f"it has {site.numel} entries, fewer than min_numel = {select.min_numel}"
    yield select.min_numel is None or site.numel >= select.min_numel, text
    rank = len(site.shape)
    yield (
        not select.ndim or rank in select.ndim,
        f"it has {rank} dimensions, not {_either(map(str, select.ndim))}",
    )
    kind = str(site.dtype).removeprefix("torch.")
    text = f"its dtype is {kind}, not {_either(select.dtype)}"
    yield not select.dtype or kind in select.dtype, text


def _names(select: Select, site: ParamSite) -> Iterator[tuple[bool, str]]:
    text = f"its name does not match path {_either(map(repr, select.path))}"
    yield not select.path or _globbed(site.aliases, select.path), text
    found = any(re.search(r, alias) for r in select.regex for alias in site.aliases)
    text = f"its name does not match regex {_either(map(repr, select.regex))}"
    yield not select.regex or found, text
    attributes = sorted({alias.rpartition(".")[2] for alias in site.aliases})
    text = f"its attribute is {_either(attributes)}, not {_either(select.param)}"
    yield not select.param or bool(set(select.param) & set(attributes)), text
    text = f"exclude {_either(map(repr, select.exclude))} leaves it out"
    yield not _globbed(site.aliases, select.exclude), text


def _either(words: Iterable[str]) -> str:
    return " or ".join(words)


def _uses(select: Select, site: ParamSite) -> bool:
    if not select.op and not select.role:
        return True
    return any(
        (not select.op or op in select.op) and (not select.role or role in select.role)
        for op, role in site.uses
    )


def _globbed(names: Iterable[str], globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in names)


def _nearest(selects: Iterable[Select], sites: list[ParamSite]) -> str:
    """Suggest the nearest operator, module, name or attribute for one that does not occur."""
    there = {
        "op": {op for site in sites for op, _ in site.uses},
        "role": {role for site in sites for _, role in site.uses},
        "module": {module for site in sites for module in site.modules},
        "path": {alias for site in sites for alias in site.aliases},
        "param": {alias.rpartition(".")[2] for site in sites for alias in site.aliases},
    }
    for select in selects:
        for key, values in there.items():
            for asked in getattr(select, key):
                if asked in values or (key == "path" and _globbed(values, [asked])):
                    continue
                near = difflib.get_close_matches(asked, sorted(values), n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                return f" ({key} {asked!r} does not occur in the program{hint})"
    return ""
