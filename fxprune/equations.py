"""Equations of einsum: a letter for each axis."""

from __future__ import annotations

import string
from collections.abc import Sequence

__all__ = ["letters_of"]


def letters_of(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return a letter for each axis of each operand, and of the result.

    Args:
        equation: as torch.einsum takes it, with an ellipsis perhaps, and perhaps without a result.
        ranks: how many axes each operand has.

    Example:
        >>> letters_of("... i d, ... j d -> ... i j", [3, 3])
        (['Zid', 'Zjd'], 'Zij')
        >>> letters_of("ij,jk", [2, 2])
        (['ij', 'jk'], 'ik')
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    counts = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)]
    dots = "".join(spare[len(spare) - max([0, *counts]) :])
    if not arrow:
        once = [letter for letter in sorted(set(inputs) - set(",.")) if inputs.count(letter) == 1]
        output = "".join(["..." if "..." in inputs else "", *once])
    # The axes of an ellipsis are counted from the last one.
    spread = [
        t.replace("...", dots[len(dots) - n :] if n > 0 else "")
        for t, n in zip(terms, counts, strict=True)
    ]
    return spread, output.replace("...", dots)
