"""Symbolic sizes in a .pt2, which sympy evaluates as Python: only what torch writes is let in."""

from __future__ import annotations

import ast
import re

from fxprune.errors import FormatError

__all__ = ["check_expression"]

_LONGEST = 2000  # characters
_DEEPEST = 16  # calls in each other
_LARGEST = 2**63
_MOST_POWER = 8
_SYMBOL = re.compile(r"[a-z]{1,4}[0-9]{1,9}", re.ASCII)
_FLAGS = frozenset({"integer", "positive", "negative", "nonnegative", "real", "finite", "zero"})
_FUNCTIONS = frozenset(
    {
        *("Add", "Mul", "Max", "Min", "Abs", "Not", "And", "Or", "Mod", "PythonMod", "Identity"),
        *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan"),
        *("GreaterThan", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "FloorDiv", "CleanDiv", "CeilDiv"),
        *("ModularIndexing", "Where", "IntTrueDiv", "FloatTrueDiv", "CeilToInt", "FloorToInt"),
        *("RoundToInt", "RoundDecimal", "ToFloat", "TruncToInt", "TruncToFloat", "floor"),
        *("ceiling", "IsNonOverlappingAndDenseIndicator"),
    }
)
_CONSTANTS = frozenset({"true", "false"})


def check_expression(text: str) -> None:
    """Check that a symbolic size calls nothing but arithmetic, on numbers of common size.

    Args:
        text: as torch writes it, as "Mul(Integer(2), Symbol('s77', positive=True, integer=True))".

    Raises:
        FormatError: it is anything else.
    """
    try:
        tree = ast.parse(text if len(text) <= _LONGEST else "", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None or not _fits(tree, 0):
        raise FormatError(f"{text[:60]!a} is no symbolic size")


def _fits(tree: ast.expr, level: int) -> bool:
    if isinstance(tree, ast.Name):
        return tree.id in _CONSTANTS or _SYMBOL.fullmatch(tree.id) is not None
    if isinstance(tree, ast.Constant):
        return _is_number(tree)
    if level > _DEEPEST or not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        return False
    name, args = tree.func.id, tree.args
    if name == "Symbol":
        return _is_symbol(tree)
    if tree.keywords:
        return False
    if name in ("Integer", "Float", "Rational"):
        return 1 <= len(args) <= 2 and all(map(_is_number, args))
    if name == "Pow":
        return len(args) == 2 and _is_power(*args) and _fits(args[0], level + 1)
    return name in _FUNCTIONS and all(_fits(arg, level + 1) for arg in args)


def _is_symbol(tree: ast.Call) -> bool:
    flags = {word.arg: word.value for word in tree.keywords}
    name = tree.args[0] if len(tree.args) == 1 else None
    return (
        isinstance(name, ast.Constant)
        and isinstance(name.value, str)
        and _SYMBOL.fullmatch(name.value) is not None
        and flags.keys() <= _FLAGS
        and all(isinstance(x, ast.Constant) and isinstance(x.value, bool) for x in flags.values())
    )


def _is_number(tree: ast.expr) -> bool:
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        tree = tree.operand
    value = tree.value if isinstance(tree, ast.Constant) else None
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _is_power(base: ast.expr, exponent: ast.expr) -> bool:
    """Tell whether a power is small: a power of a power, or a large one, may take all memory."""
    nested = any(isinstance(part, ast.Name) and part.id == "Pow" for part in ast.walk(base))
    whole = exponent.args[:1] if isinstance(exponent, ast.Call) else []
    if nested or not whole or not _is_number(whole[0]):
        return False
    return ast.literal_eval(whole[0]) in range(-1, _MOST_POWER + 1)
