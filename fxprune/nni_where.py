"""Which modules an entry of NNI's config_list means, and what is left of it beside others."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from fxprune.errors import RecipeError
from fxprune.recipe_errors import show
from fxprune.regexes import fits_at_start

__all__ = ["Name", "Where", "minus", "select_of"]

T = TypeVar("T")


class Name(NamedTuple):
    """A module name, or a regular expression that NNI matches at its start.

    Args:
        text: the name or the expression.
        is_regex: which of the two.
    """

    text: str
    is_regex: bool = False

    def fits(self, name: str) -> bool:
        """Whether a module of this name is meant."""
        return fits_at_start(self.text, name) if self.is_regex else self.text == name


@dataclass(frozen=True)
class Where:
    """Modules of some classes, whose names are among each of some sets and not among others.

    Args:
        types: class names; None for any.
        names: sets of names, all of which must hold the module's name.
        without: names that are left out.
    """

    types: tuple[str, ...] | None
    names: tuple[tuple[Name, ...], ...] = ()
    without: tuple[Name, ...] = ()

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
    """Return what is left of `a` without `b`, as disjoint parts.

    Raises:
        RecipeError: a selection cannot say "of any class but these".

    Example:
        >>> linears = Where(("Linear", "Conv2d"))
        >>> [part.types for part in minus(linears, Where(("Linear",)))]
        [('Conv2d',)]
    """
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
        found.append(replace(inner, without=_joined(inner.without, b.names[0])))
    if b.without:
        found.append(replace(inner, names=_joined(inner.names, (*b.names, b.without))))
    return tuple(part for part in found if not part.is_empty)


def _joined(a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys((*a, *b)))


def select_of(where: Where, target: str) -> dict[str, list[str]]:
    """Return the table `select` of a target, as "weight", of modules.

    Args:
        where: the modules.
        target: the attribute.

    Example:
        >>> select_of(Where(("Linear",), without=(Name("fc3"),)), "weight")
        {'param': ['weight'], 'module': ['Linear'], 'exclude': ['fc3.weight']}
    """
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
    names: tuple[tuple[Name, ...], ...], without: tuple[Name, ...], target: str
) -> Iterator[str]:
    """Yield expressions on full names, any of which has to be found."""
    if len(names) == 1 and not without:
        yield from (f"^{part}" for name in names[0] for part in _on_full_name(name, target))
        return
    needed = "".join(f"(?={_either(group, target)})" for group in names)
    barred = f"(?!{_either(without, target)})" if without else ""
    yield f"^{needed}{barred}"


def _either(names: Iterable[Name], target: str) -> str:
    return "|".join(part for name in names for part in _on_full_name(name, target))


def _on_full_name(name: Name, target: str) -> Iterator[str]:
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
