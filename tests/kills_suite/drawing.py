"""Faults of one line, drawn from source code: a comparison flipped, a number off by one."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FLIPPED: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}


@dataclass(frozen=True)
class Edit:
    """One line of a file, changed.

    Attributes:
        path: of the file.
        line: its number, from 1.
        kind: what is done to it.
        after: what it is changed to.
    """

    path: Path
    line: int
    kind: str
    after: str

    def apply(self, source: str) -> str:
        """Change the line in the text of the file."""
        lines = source.splitlines()
        lines[self.line - 1] = self.after
        return "\n".join([*lines, ""])


def edits_of(path: Path, executed: Callable[[int], bool], rng: random.Random) -> list[Edit]:
    """Draw an order of all edits in the functions of a file.

    Args:
        path: of the file.
        executed: whether a test executes a line.
        rng: for the order.
    """
    source = path.read_text(encoding="utf-8")
    found = list[Edit]()
    for node in _nodes(ast.parse(source)):
        line: int = getattr(node, "lineno", 0)
        if line == getattr(node, "end_lineno", None) and executed(line):
            text = source.splitlines()[line - 1]
            edits = _edits(node, text) if text.isascii() else ()
            found += [Edit(path, line, kind, after) for kind, after in edits if after != text]
    rng.shuffle(found)
    return found


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what functions compute: no annotations, no texts of messages."""
    functions = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.Lambda)))
    bodies = [n.body if isinstance(n.body, list) else [n.body] for n in functions]
    seen = set[int]()
    waiting: list[ast.AST] = [statement for body in bodies for statement in body]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, (ast.JoinedStr, ast.arguments)):
            continue
        seen.add(id(node))
        yield node
        skipped = getattr(node, "annotation", None)
        waiting += [child for child in ast.iter_child_nodes(node) if child is not skipped]


def _edits(node: ast.AST, text: str) -> Iterator[tuple[str, str]]:
    """Yield kinds of edits of a node, and its line after each."""
    match node:
        case ast.Compare(ops=[op], comparators=[right]) if type(op) in FLIPPED:
            flipped = f" {FLIPPED[type(op)]} "
            yield "comparison", _replaced(text, node.left.end_col_offset, right.col_offset, flipped)
        case ast.Constant(value=bool() as value):
            yield "constant", _replaced(text, node.col_offset, node.end_col_offset, str(not value))
        case ast.Constant(value=int() as value):
            more = str(value + 1)
            yield "off by one", _replaced(text, node.col_offset, node.end_col_offset, more)
        case ast.UnaryOp(op=ast.Not()):
            yield "no not", _replaced(text, node.col_offset, node.operand.col_offset, "")
        case ast.BinOp(op=ast.Add() | ast.Sub() as op):
            other = " - " if isinstance(op, ast.Add) else " + "
            yield "sign", _replaced(text, node.left.end_col_offset, node.right.col_offset, other)
        case ast.BoolOp(values=[left, right]):
            other = " or " if isinstance(node.op, ast.And) else " and "
            yield "and or", _replaced(text, left.end_col_offset, right.col_offset, other)
        case ast.Call(args=[first, second, *_]) if not isinstance(first, ast.Starred):
            if not isinstance(second, ast.Starred):
                one, two = (text[a.col_offset : a.end_col_offset] for a in (first, second))
                swapped = _replaced(text, first.col_offset, second.end_col_offset, f"{two}, {one}")
                yield "arguments", swapped
        case _:
            pass


def _replaced(text: str, start: int | None, stop: int | None, by: str) -> str:
    """Put other text in a place; brackets that close or open between its ends stay."""
    assert start is not None
    assert stop is not None
    between = text[start:stop]
    closing = between[: len(between) - len(between.lstrip(") "))].replace(" ", "")
    opening = between[len(between.rstrip("( ")) :].replace(" ", "")
    return text[:start] + closing + by + opening + text[stop:]
