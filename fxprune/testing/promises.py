"""Whether a pass kept its promise: the one place that asks fxprune's checker."""

from __future__ import annotations

from fxprune.checker import check_invariants
from fxprune.errors import InvariantError
from fxprune.pipeline import Pass
from fxprune.program import Program
from fxprune.promising import PromiseCheck

__all__ = ["broken_promise"]


def broken_promise(before: Program, after: Program, step: Pass, *, trials: int) -> str | None:
    """Return how a pass broke what it promised; None where it kept it.

    Args:
        before: as the pass was given it.
        after: as the pass left it.
        step: the pass.
        trials: how many inputs to draw for each mode.
    """
    try:
        check_invariants(after, step.name)
    except InvariantError as error:
        return str(error)
    if step.promise == "changes":
        return None
    broken = PromiseCheck.of(before, step.promise).violation(after, bound=step.bound, trials=trials)
    return None if broken is None else f"{step.name} {broken}"
