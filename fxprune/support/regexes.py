"""Regular expressions of users' on names, in bounded time, from any source.

Python's own matcher tries again and again: one pattern of ten characters can take it for years.
Here Python parses the pattern and tests single characters; the search itself visits each place of
the pattern at each place of the name once, which is all that telling whether it fits needs.

The package `regex` does not replace it: its `timeout=` covers the search alone, and compiling
`a{4000000000}` does not end; it also reads `a{e}` and `[[:alpha:]]` differently from `re`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from re import _compiler, _parser  # pyright: ignore
from typing import Any

from fxprune.errors import SelectError

LONGEST = 2000  # characters of a pattern
_MOST_PLACES = 5000
_MOST_STEPS = 200_000  # for one name
_ALLOWED, _ALLOWED_EACH = 400_000, 2_000  # for all names of a model together

_parsing: Any = _parser
_compiling: Any = _compiler
# By the names that Python's parser gives them.
_CHARACTERS = ("LITERAL", "NOT_LITERAL", "IN", "ANY")
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT")
_UNBOUNDED = {
    "GROUPREF": "refers back to a group",
    "GROUPREF_EXISTS": "asks whether a group was found",
    "POSSESSIVE_REPEAT": "has a possessive repetition",
    "ATOMIC_GROUP": "has an atomic group",
}


class UnboundedError(ValueError):
    """A pattern is too large, or has a part that no bounded time is enough for."""


class Allowance:
    """How many steps the regular expressions of a rule may take on so many names together."""

    def __init__(self, names: int) -> None:
        self.left = _ALLOWED + _ALLOWED_EACH * names

    def take(self, steps: int) -> None:
        """Count steps that were taken; a SelectError where they are more than there were."""
        self.left -= steps
        if self.left < 0:
            raise SelectError(
                "the names take too many steps to match with regex; make the regex simpler"
            )


@dataclass
class _State:
    """A step of a pattern: what must be there, and the places that may come next."""

    kind: str  # "character", "at", "ahead", "behind", "split" or "end"
    test: Any = None  # a compiled part; for "ahead" and "behind" the place that it begins at
    negated: bool = False  # whether "ahead" or "behind" must fail
    width: int = 0  # how far back "behind" begins
    following: list[int] = field(default_factory=list[int])


def fits_anywhere(pattern: str, text: str, allowance: Allowance | None = None) -> bool:
    """Tell whether a regular expression fits somewhere in a text, as `re.search` does."""
    places, start = _compile(pattern)
    searched = _Search(places, text)
    found = any(searched.fits(start, at) for at in range(len(text) + 1))
    if allowance is not None:
        allowance.take(searched.steps)
    return found


def fits_at_start(pattern: str, text: str) -> bool:
    """Tell whether a regular expression fits at the start of a text, as `re.match` does."""
    places, start = _compile(pattern)
    return _Search(places, text).fits(start, 0)


def check_regex(pattern: str) -> None:
    """Check that a regular expression can be searched for in bounded time."""
    _compile(pattern)


@lru_cache(maxsize=256)
def _compile(pattern: str) -> tuple[list[_State], int]:
    if len(pattern) > LONGEST:
        raise UnboundedError(f"has {len(pattern)} characters; at most {LONGEST} are read")
    parsed = _parsing.parse(pattern)
    builder = _StateBuilder()
    end = builder.add(_State("end"))
    return builder.places, builder.sequence(parsed, int(parsed.state.flags), end)


class _StateBuilder:
    """Makes places of a parsed pattern, from its end to its beginning."""

    def __init__(self) -> None:
        self.places: list[_State] = []

    def add(self, place: _State) -> int:
        if len(self.places) >= _MOST_PLACES:
            raise UnboundedError(f"has more than {_MOST_PLACES} places, repetitions counted out")
        self.places.append(place)
        return len(self.places) - 1

    def sequence(self, parts: Any, flags: int, following: int) -> int:
        """Add parts that stand one after another; return where they begin."""
        for op, value in reversed(list(parts)):
            following = self.part(str(op), op, value, flags, following)
        return following

    def part(self, name: str, op: Any, value: Any, flags: int, following: int) -> int:
        if name in _UNBOUNDED:
            raise UnboundedError(_UNBOUNDED[name])
        if name in _CHARACTERS or name == "AT":
            kind = "at" if name == "AT" else "character"
            return self.add(_State(kind, _compile_part(op, value, flags), following=[following]))
        if name == "SUBPATTERN":
            _, added, taken, parts = value
            return self.sequence(parts, (flags | int(added)) & ~int(taken), following)
        if name == "BRANCH":
            starts = [self.sequence(parts, flags, following) for parts in value[1]]
            return self.add(_State("split", following=starts))
        if name in _REPEATS:
            least, most, parts = value
            return self._repeat(least, most, parts, flags, following)
        if name in ("ASSERT", "ASSERT_NOT"):
            direction, parts = value
            start = self.sequence(parts, flags, self.add(_State("end")))
            kind = "ahead" if direction > 0 else "behind"
            negated, width = name == "ASSERT_NOT", int(parts.getwidth()[0])
            return self.add(_State(kind, start, negated, width, [following]))
        if name == "FAILURE":  # an empty negative assertion
            return self.add(_State("split"))
        raise UnboundedError(f"has a part that is not known here: {name}")

    def _repeat(self, least: int, most: Any, parts: Any, flags: int, following: int) -> int:
        if most is _parsing.MAXREPEAT:
            loop = self.add(_State("split", following=[following]))
            self.places[loop].following.append(self.sequence(parts, flags, loop))
            following = loop
        else:
            after = following
            for _ in range(int(most) - least):
                inner = self.sequence(parts, flags, following)
                following = self.add(_State("split", following=[inner, after]))
        for _ in range(least):
            following = self.sequence(parts, flags, following)
        return following


def _compile_part(op: Any, value: Any, flags: int) -> Any:
    """Return a part of a pattern, of one character or none, as Python matches it."""
    state = _parsing.State()
    state.flags = flags
    return _compiling.compile(_parsing.SubPattern(state, [(op, value)]), flags)


class _Search:
    """Visits each place of a pattern at each place of a text at most once."""

    def __init__(self, places: list[_State], text: str) -> None:
        self.places = places
        self.text = text
        self.steps = 0
        self.failed: set[tuple[int, int]] = set()

    def fits(self, place: int, at: int) -> bool:
        """Tell whether the pattern goes on from a place of it, at a place of the text."""
        stack = [(place, at)]
        visited: list[tuple[int, int]] = []
        while stack:
            here = stack.pop()
            if here in self.failed:
                continue
            self.failed.add(here)
            visited.append(here)
            self.steps += 1
            if self.steps > _MOST_STEPS:
                raise SelectError(
                    f"a name of {len(self.text)} characters takes too many steps to match with a "
                    "regex; make the regex simpler"
                )
            found = self._step(*here)
            if found is None:
                # What led here has not failed.
                self.failed.difference_update(visited)
                return True
            stack += reversed(found)
        return False

    def _step(self, number: int, at: int) -> list[tuple[int, int]] | None:
        """Return where a place leads to; None at the end of the pattern."""
        place = self.places[number]
        if place.kind == "end":
            return None
        if place.kind == "character":
            fits = at < len(self.text) and place.test.match(self.text, at, at + 1) is not None
            at += 1
        elif place.kind == "at":
            fits = place.test.match(self.text, at) is not None
        elif place.kind in ("ahead", "behind"):
            start = at - place.width if place.kind == "behind" else at
            fits = (start >= 0 and self.fits(place.test, start)) is not place.negated
        else:
            fits = True
            return [(following, at) for following in place.following]
        return [(following, at) for following in place.following] if fits else []
