"""Runs the pipeline of one stage of a recipe, and writes down what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fxprune.facts import GivenMasks, Importance, Methods
from fxprune.pipeline import Facts, Watch
from fxprune.program import Program
from fxprune.records import pass_records, record_of
from fxprune.stages import Stage

__all__ = ["OnPass", "filled", "run_stage"]

OnPass = Callable[[str], None]


def run_stage(
    work: Program,
    stage: Stage,
    given: Iterable[Any],
    on_pass: OnPass | None,
    watch: Watch | None = None,
) -> None:
    """Run the passes of a stage, and add to the Program's records what they did.

    Args:
        work: edited in place.
        stage: the passes.
        given: facts given from the start.
        on_pass: called with the stage's and the pass's name before each pass.
        watch: sees the Program before and after each pass.
    """
    facts = Facts(filled(given))
    named = None if on_pass is None else lambda step: on_pass(f"{stage.name}: {step}")
    trace = stage.pipeline.run(work, facts, on_pass=named, watch=watch)
    if watch is not None:
        watch.stage(work, stage.rules, facts)
    if stage.calls:
        work.captured.passes += pass_records(stage, trace)
    else:
        work.captured.records += (record_of(stage, facts, trace),)


def filled(given: Iterable[Any]) -> list[Any]:
    """Fill up what callers may give with empty facts.

    Args:
        given: facts, at most one of a type.
    """
    there = {type(fact): fact for fact in (Importance(), GivenMasks(), Methods())}
    there.update((type(fact), fact) for fact in given)
    return list(there.values())
