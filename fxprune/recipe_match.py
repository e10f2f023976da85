"""What a rule's `select`, `match` and `prune` say together: which parameters the rule takes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from fxprune.pattern_parse import parse
from fxprune.pattern_parts import capitals
from fxprune.recipe_errors import hint, show

__all__ = ["choice_faults", "pruned_names"]


def pruned_names(match: str, prune: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names whose parameters a rule takes: those of `prune`, or all of the pattern.

    Args:
        match: the rule's pattern.
        prune: the rule's `prune`; None where the pattern has one name of a parameter.

    Example:
        >>> pruned_names("linear(_, W, b)", None)
        ('W',)
    """
    return capitals(parse(match)) if prune is None else tuple(dict.fromkeys(prune))


def choice_faults(select: object, match: str | None, prune: Sequence[str] | None) -> Iterator[str]:
    """Yield what is wrong with a rule's `select`, `match` and `prune` together."""
    if select is not None and match is not None:
        yield "select and match each say which parameters the rule takes; leave one out"
    elif select is not None and prune is not None:
        yield "prune does not go with select; leave it out: it is for match"
    elif match is not None:
        yield from _name_faults(capitals(parse(match)), prune)
    elif select is None and prune is not None:
        yield f"match is missing; {hint('match')}"
    elif select is None:
        yield f"select is missing; {hint('select')}, or {hint('match').removeprefix('write ')}"


def _name_faults(bound: Sequence[str], prune: Sequence[str] | None) -> Iterator[str]:
    names = ", ".join(f"'{name}'" for name in bound)
    if not bound:
        yield "match binds no parameter; give the one to prune a capital name, as conv2d(_, W)"
    elif prune is None and len(bound) > 1:
        yield f"prune is missing; match binds {names}: name those to prune, as prune = '{bound[0]}'"
    for name in prune or ():
        if bound and name not in bound:
            near = max(bound, key=lambda known: _likeness(known, name))
            mend = f"did you mean '{near}'? Bound: {names}"
            yield f"prune = {show(name)} is not bound in match; {mend}"


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.casefold(), b.casefold()).ratio()
