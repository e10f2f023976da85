"""Run one pass on a Program, with the facts that it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from fxprune.errors import PassError, PassTypeError
from fxprune.facts import GivenMasks, Importance, Methods, Selection
from fxprune.pipeline import Facts, Pass, Pipeline, Trace
from fxprune.program import Program
from fxprune.testing.drawn_recipes import prunable
from fxprune.transaction import copied

__all__ = ["Given", "Outcome", "copy_and_run", "facts_for", "instance_of", "run_on"]

Given = Callable[[Program], Iterable[Any]] | Iterable[Any]
"""Facts beside those that every pass gets, or a function that finds them of a Program."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a pass made of a Program.

    Args:
        program: that the pass ran on.
        facts: after the pass.
        trace: edits and refusals.
    """

    program: Program
    facts: Facts
    trace: Trace


def instance_of(step: Pass | type[Pass]) -> Pass:
    """Return a pass; of a class, the one with the default options.

    Raises:
        PassTypeError: it is no pass, or its class has options without a default.
    """
    if not isinstance(step, type):
        if not isinstance(step, Pass):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PassTypeError(f"{step!r} is no pass; give a Rewrite, an Analysis or its class")
        return step
    try:
        made: Any = step()
    except TypeError as error:
        raise PassTypeError(f"{step.__name__} needs options: {error}; give an instance") from error
    return instance_of(made)


def facts_for(program: Program, step: Pass, given: Given = ()) -> Facts:
    """Return facts to run a pass with: all parameters are selected, nothing else is given.

    Args:
        program: what the pass will run on.
        step: the pass.
        given: see `Given`.

    Raises:
        PassError: the pass needs a fact of another kind.
    """
    facts = Facts([Importance(), GivenMasks(), Methods()])
    if Selection in step.needs:
        facts.put(Selection(tuple(prunable(program))))
    for fact in given(program) if callable(given) else given:
        facts.put(fact)
    missing = [kind.__name__ for kind in step.needs if kind not in facts.kinds]
    if missing:
        raise PassError(f"the pass {step.name!r} needs {missing[0]}; give it by given=")
    return facts


def run_on(program: Program, step: Pass, given: Given = ()) -> Outcome:
    """Run a pass on a Program, which is edited, and check it as every pipeline does."""
    facts = facts_for(program, step, given)
    return Outcome(program, facts, Pipeline((step,)).run(program, facts))


def copy_and_run(program: Program, step: Pass, given: Given = ()) -> Outcome:
    """Run a pass on a copy of a Program."""
    return run_on(copied(program), step, given)
