"""What a pattern is made of, as data, and what fitting one gives: a Match or a Refusal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.fx.node import Node

__all__ = [
    "Anything",
    "Call",
    "Constant",
    "Either",
    "Listed",
    "Match",
    "Name",
    "Pattern",
    "Refusal",
    "calls_around",
    "capitals",
    "inner_parts",
    "operators",
    "parts_of",
]


@dataclass(frozen=True)
class Refusal:
    """Why a rule or a pattern does not apply.

    Args:
        reason: one clause that a user can act on.
        node: the node that is in the way.
        depth: how many parts of the pattern had fitted before; of several attempts, the deepest
            is the nearest miss.
    """

    reason: str
    node: Node | None = None
    depth: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        where = "" if self.node is None else f" (node {self.node.name})"
        return f"{self.reason}{where}"


@dataclass(frozen=True)
class Match:
    """A node that a pattern fits, and what its names are bound to."""

    node: Node
    bindings: dict[str, Any]


@dataclass(frozen=True)
class Anything:
    """`_`: fits anything and binds nothing."""

    def __str__(self) -> str:
        return "_"


@dataclass(frozen=True)
class Name:
    """A name: a parameter when it starts with a capital, else any argument."""

    name: str

    @property
    def is_parameter(self) -> bool:
        """Whether the name binds only a parameter."""
        return self.name[0].isupper()

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Constant:
    """A value that an argument must equal; a whole number fits a list of it, too."""

    value: Any

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True)
class Listed:
    """A list with a pattern for each entry.

    Args:
        items: the patterns, in order.
        rest: how many of them stand before the `*`, which takes any entries; None without one.
    """

    items: tuple[Pattern, ...]
    rest: int | None = None

    def __str__(self) -> str:
        shown = [str(item) for item in self.items]
        if self.rest is not None:
            shown.insert(self.rest, "*")
        return f"[{', '.join(shown)}]"


@dataclass(frozen=True)
class Call:
    """An operator by its canonical name, with patterns for its arguments.

    Args:
        op: the name; several that are as good joined by "|", and "_" for any operator.
        args: patterns for the arguments by position; those that follow may be anything.
        keywords: patterns for arguments by their name in the operator's schema.
        shared: whether users outside of the match may read the value, too.
    """

    op: str
    args: tuple[Pattern, ...]
    keywords: tuple[tuple[str, Pattern], ...]
    shared: bool = False

    @property
    def ops(self) -> tuple[str, ...]:
        """The names, one or more."""
        return tuple(self.op.split("|"))

    def __str__(self) -> str:
        keywords = [f"{role}={part}" for role, part in self.keywords]
        op = f"({self.op})" if "|" in self.op else self.op
        return f"{op}({', '.join([*map(str, self.args), *keywords])}){'!' * self.shared}"


@dataclass(frozen=True)
class Either:
    """Patterns that are as good, tried in order."""

    options: tuple[Pattern, ...]

    def __str__(self) -> str:
        return " | ".join(map(str, self.options))


Pattern = Anything | Name | Constant | Listed | Call | Either


def inner_parts(pattern: Pattern) -> tuple[Pattern, ...]:
    """Return the patterns that stand directly inside of one."""
    if isinstance(pattern, Call):
        return (*pattern.args, *(part for _, part in pattern.keywords))
    if isinstance(pattern, Listed):
        return pattern.items
    return pattern.options if isinstance(pattern, Either) else ()


def parts_of(pattern: Pattern) -> Iterator[Pattern]:
    """Yield a pattern and all that stands inside of it, in the order of the text."""
    yield pattern
    for part in inner_parts(pattern):
        yield from parts_of(part)


def capitals(pattern: Pattern) -> tuple[str, ...]:
    """Return the names of parameters in a pattern, each once, in the order of the text."""
    parts = (part for part in parts_of(pattern) if isinstance(part, Name))
    return tuple(dict.fromkeys(part.name for part in parts if part.is_parameter))


def operators(pattern: Pattern) -> tuple[str, ...]:
    """Return the operators in a pattern, each once, in the order of the text."""
    calls = (part for part in parts_of(pattern) if isinstance(part, Call))
    return tuple(dict.fromkeys(op for call in calls for op in call.ops))


def calls_around(pattern: Pattern, name: str) -> Iterator[tuple[Call, ...]]:
    """Yield the calls around each place of a name, the innermost first.

    Args:
        pattern: the whole pattern.
        name: one that stands in it.
    """
    if isinstance(pattern, Name) and pattern.name == name:
        yield ()
    for part in inner_parts(pattern):
        for calls in calls_around(part, name):
            yield (*calls, pattern) if isinstance(pattern, Call) else calls
