"""Patterns over a Program's nodes, written as expressions over canonical operator names.

    relu(batch_norm(conv2d(_, W, groups=1)))

`_` is anything; a capital name binds a parameter that the graph reads, masked or not; a small
name binds any argument; a keyword constrains or binds the argument of that role, its default where
the call leaves it out; `*` says that more arguments may follow, and in a list, `[*, relu(_)]`, it
takes the other entries. `(relu|gelu)(x)` and `relu|gelu(x)` are either operator,
`relu(x) | gelu(y)` is either pattern. The operands of commutative operators stand in either order.
What a match reads inside of itself must have no other users, unless its call is marked,
`conv2d(_, W)!`. A name that stands twice must be the same both times: one node, one parameter, or
equal constants. Python's own parser reads the text.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from fxprune.errors import RecipeError
from fxprune.support import exclusive
from fxprune.words import plain

if TYPE_CHECKING:  # torch takes seconds to import
    from torch.fx.node import Node


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
    """A list with a pattern for each entry."""

    items: tuple[Pattern, ...]
    rest: int | None = None  # how many stand before the `*`, which takes any entries

    def __str__(self) -> str:
        shown = [str(item) for item in self.items]
        if self.rest is not None:
            shown.insert(self.rest, "*")
        return f"[{', '.join(shown)}]"


@dataclass(frozen=True)
class Call:
    """An operator by its canonical name, with patterns for its arguments."""

    op: str  # several that are as good are joined by "|"; "_" is any
    args: tuple[Pattern, ...]  # by position; those that follow may be anything
    keywords: tuple[tuple[str, Pattern], ...]  # by their name in the operator's schema
    shared: bool = False  # whether users outside of the match may read the value too

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
    """Yield the calls around each place of a name, the innermost first."""
    if isinstance(pattern, Name) and pattern.name == name:
        yield ()
    for part in inner_parts(pattern):
        for calls in calls_around(part, name):
            yield (*calls, pattern) if isinstance(pattern, Call) else calls


_LONGEST = 4096  # characters
_DEEPEST = 32  # levels
_MOST = 256  # parts
_SHOWN = 60  # characters of a long line, around the caret

_WANTED = "expected a name, a constant or operator(...)"
_TOO_DEEP = f"it is nested too deeply; at most {_DEEPEST} levels"

_QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
# What may stand between the parts: blanks, ends of lines, comments.
_BLANK = re.compile(_QUOTED.pattern + r"|#[^\n]*|\s")
# What Python does not know: a star that stands alone, and a mark after a call.
_STAR = re.compile(r"[(\[,] *\*(?= *[,)\]])")
_MARK = re.compile(r"\) *!(?!=)")


@lru_cache(maxsize=256)
def parse(text: str, *, where: str = "pattern") -> Pattern:
    """Parse a pattern.

    Args:
        text: an expression in the language of `fxprune.rewrite.pattern`, on one line or several.
        where: what an error begins with.

    Raises:
        RecipeError: the text is not a pattern; points at the place.

    Example:
        >>> parse("mul(W, m)")
        Call(op='mul', args=(Name(name='W'), Name(name='m')), keywords=(), shared=False)
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RecipeError(f"{where}: {text!r} is not a text; give a pattern as relu(conv2d(_, W))")
    if len(text) > _LONGEST:
        raise RecipeError(
            f"{where}: the pattern has {len(text)} characters; at most {_LONGEST} are read"
        )
    source = _Source(text, where)
    return _Builder(source).build(source.read(), 1)


@dataclass
class _Source:
    """A pattern's text, and its faults."""

    text: str
    where: str

    def __post_init__(self) -> None:
        # Every step keeps the length, so that places in the code are places in the text.
        flat = _BLANK.sub(lambda m: m[0] if m[0][0] in "'\"" else " " * len(m[0]), self.text)
        bare = _QUOTED.sub(lambda m: "s" * len(m[0]), flat)
        for i, character in enumerate(flat):
            if character == "\\" or not character.isprintable():
                self.fault(i, f"{plain(character)!r} is not part of the language")
        self.stars = {m.end() - 1 for m in _STAR.finditer(bare)}
        # The place of each mark by the place right after its call.
        self.marks = {m.start() + 1: m.end() - 1 for m in _MARK.finditer(bare)}
        code = list(flat)
        for i in self.stars:
            code[i] = "_"
        for i in self.marks.values():
            code[i] = " "
        loose = next((i for i, c in enumerate(bare) if c == "!" and code[i] == "!"), None)
        if loose is not None:
            self.fault(loose, _MARKED)
        self.code = "".join(code).rstrip()
        self.start = len(self.code) - len(self.code.lstrip())

    def read(self) -> ast.expr:
        """Return the expression that Python reads in the text."""
        with exclusive(), warnings.catch_warnings():
            # Python warns of numbers that run into words; what comes of it is a fault below.
            warnings.simplefilter("ignore")
            try:
                return ast.parse(self.code[self.start :], mode="eval").body
            except (RecursionError, MemoryError):
                raise RecipeError(f"{self.where}: {_TOO_DEEP}") from None
            except (SyntaxError, ValueError) as error:
                nested = "too many nested" in str(error)
                at = getattr(error, "offset", None) or 1
                self.fault(self.start + at - 1, _TOO_DEEP if nested else _NOTHING)

    def at(self, column: int) -> int:
        """Return the place in the text of a column that ast gives, which counts bytes."""
        return self.start + len(self.code[self.start :].encode()[:column].decode())

    def fault(self, at: int, what: str) -> NoReturn:
        """Raise an error with the line of the text that has the fault, and a caret under it."""
        at = min(max(at, 0), len(self.text))
        first = self.text.rfind("\n", 0, at) + 1
        line = self.text[first:].partition("\n")[0]
        number = self.text.count("\n", 0, at) + 1
        here = f" (line {number})" if "\n" in self.text.strip() else ""
        before, after = plain(line[: at - first]), plain(line[at - first :])
        if len(before) > _SHOWN:
            before = "..." + before[-_SHOWN:]
        if len(after) > _SHOWN:
            after = after[:_SHOWN] + "..."
        raise RecipeError(f"{self.where}: {what}{here}\n  {before}{after}\n  {' ' * len(before)}^")


_NOTHING = "this is not an expression"
_MARKED = "`!` follows a call, as in relu(...)!"


class _Builder:
    """Makes a pattern of an expression."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.parts = 0

    def build(self, tree: ast.expr, level: int) -> Pattern:
        """Return the pattern that an expression stands for."""
        self.parts += 1
        if level > _DEEPEST:
            self.fault(tree, _TOO_DEEP)
        if self.parts > _MOST:
            self.fault(tree, f"it has too many parts; at most {_MOST}")
        pattern = self._build_part(tree, level)
        if level == 1:
            self._check_marks()
        return pattern

    def _build_part(self, tree: ast.expr, level: int) -> Pattern:
        if isinstance(tree, ast.Name):
            return Anything() if tree.id == "_" else Name(tree.id)
        if isinstance(tree, ast.Constant | ast.UnaryOp):
            return Constant(self._value(tree))
        if isinstance(tree, ast.List | ast.Tuple):
            return self._list(tree.elts, level)
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
            return self._either(tree, level)
        if isinstance(tree, ast.Call):
            return self._call(tree, self._ops(tree.func), level)
        self.fault(tree, _WANTED)

    def _value(self, tree: ast.expr) -> bool | int | float | str | None:
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            value = tree.operand.value if isinstance(tree.operand, ast.Constant) else None
            if isinstance(value, int | float) and not isinstance(value, bool):
                return -value
        if isinstance(tree, ast.Constant) and isinstance(
            tree.value, bool | int | float | str | None
        ):
            return tree.value
        self.fault(tree, _WANTED)

    def _list(self, items: list[ast.expr], level: int) -> Listed:
        stars = [i for i, item in enumerate(items) if self._is_star(item)]
        if len(stars) > 1:
            self.fault(items[stars[1]], "`*` stands in a list once: it takes all the others")
        plain_items = [item for i, item in enumerate(items) if i not in stars]
        built = tuple(self.build(item, level + 1) for item in plain_items)
        return Listed(built, stars[0] if stars else None)

    def _either(self, tree: ast.BinOp, level: int) -> Pattern:
        options: list[Pattern] = []
        names: list[ast.Name] = []  # bare ones, which are operators where a call follows
        for part in _alternatives(tree):
            if isinstance(part, ast.Name) and not part.id[0].isupper():
                names.append(part)
                continue
            ops = [name.id for name in names]
            if ops and not isinstance(part, ast.Call):
                self.fault(names[0], f"{_BARE} before `|` belongs to a call: relu|gelu(...)")
            names.clear()
            if isinstance(part, ast.Call):
                self.parts += 1
                options.append(self._call(part, [*ops, *self._ops(part.func)], level + 1))
            else:
                options.append(self.build(part, level + 1))
        if len(names) > 1:
            self.fault(names[0], f"{_BARE} fits anything: a pattern after it is never needed")
        options += [self.build(name, level + 1) for name in names]
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _ops(self, func: ast.expr) -> list[str]:
        """Return the operators that a call names before its parenthesis."""
        names = [part.id for part in _alternatives(func) if isinstance(part, ast.Name)]
        if len(names) != len(_alternatives(func)):
            self.fault(func, _WANTED)
        return names

    def _call(self, tree: ast.Call, ops: list[str], level: int) -> Call:
        args = tree.args
        for arg in args[:-1]:
            if self._is_star(arg):
                self.fault(arg, "`*` comes last: it takes the rest")
        # More arguments may follow in any case; `*` says so.
        plain_args = args[:-1] if args and self._is_star(args[-1]) else args
        keywords: list[tuple[str, Pattern]] = []
        built = tuple(self.build(arg, level + 1) for arg in plain_args)
        for keyword in tree.keywords:
            if keyword.arg is None:
                self.fault(keyword, "`**` is not part of the language")
            if keyword.arg in dict(keywords):
                self.fault(keyword, f"the argument {keyword.arg} is given twice")
            keywords.append((keyword.arg, self.build(keyword.value, level + 1)))
        end = self.source.at(tree.end_col_offset or 0)
        shared = self.source.marks.pop(end, None) is not None
        return Call("|".join(dict.fromkeys(ops)), built, tuple(keywords), shared)

    def _is_star(self, tree: ast.expr) -> bool:
        return isinstance(tree, ast.Name) and self.source.at(tree.col_offset) in self.source.stars

    def _check_marks(self) -> None:
        for at in self.source.marks.values():
            self.source.fault(at, _MARKED)

    def fault(self, tree: ast.expr | ast.keyword, what: str) -> NoReturn:
        """Raise an error that points at an expression."""
        self.source.fault(self.source.at(tree.col_offset), what)


_BARE = "a bare name"


def _alternatives(tree: ast.expr) -> list[ast.expr]:
    """Return what stands between the bars, from left to right."""
    found: list[ast.expr] = []
    stack = [tree]
    while stack:
        part = stack.pop()
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitOr):
            stack += [part.right, part.left]
        else:
            found.append(part)
    return found
