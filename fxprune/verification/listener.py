"""Listeners: what sees a Program during a run of passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fxprune.program import Program
from fxprune.recipe import Rule
from fxprune.rewrite import Facts, Pass


class Listener:
    """Sees a run of passes; what it raises stops the run, and nothing is changed."""

    def begin(self, program: Program) -> None:
        """See the Program before the first pass."""

    def before(self, program: Program, step: Pass, stage: str) -> None:
        """See the Program before a pass; `stage` names its rules, "" where there are none."""

    def after(self, program: Program, step: Pass, facts: Facts) -> None:
        """See the Program after a pass, with the facts that are there."""

    def stage(self, program: Program, rules: Sequence[Rule], facts: Facts) -> None:
        """See the Program after the passes of some rules; no rules: after those of `[[pass]]`."""

    def end(self, program: Program) -> None:
        """See the Program after the last pass, before it takes the place of the caller's."""


class OnPass(Listener):
    """Calls a function with the name of each pass before it runs, as "rule: pass"."""

    def __init__(self, call: Callable[[str], None]) -> None:
        self._call = call

    def before(self, program: Program, step: Pass, stage: str) -> None:
        """Call the function."""
        self._call(f"{stage}: {step.name}" if stage else step.name)


def listeners_of(
    on_pass: Callable[[str], None] | None, *others: Listener | None
) -> tuple[Listener, ...]:
    """Return the listeners that are there, a function to call before each pass first."""
    first = None if on_pass is None else OnPass(on_pass)
    return tuple(each for each in (first, *others) if each is not None)
