"""Stages run on a fork or a copy of a Program, which then takes the place of it: all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from fxprune.errors import FxpruneError, PassError
from fxprune.facts import GivenMasks, Importance, Methods
from fxprune.observing import Observer
from fxprune.peers import Peers
from fxprune.pipeline import Facts, Watch
from fxprune.program import Program
from fxprune.records import pass_records, record_of
from fxprune.shards import refuse_sharded
from fxprune.stages import Stage
from fxprune.transaction import commit, copied, fork

__all__ = ["OnPass", "done", "run_stage", "worked"]

OnPass = Callable[[str], None]


def worked(
    program: Program,
    stages: Iterable[Stage],
    given: Iterable[Any],
    *,
    inplace: bool,
    on_pass: OnPass | None = None,
    observer: Observer | None = None,
    watch: Watch | None = None,
) -> Program:
    """Run the pipelines of some rules on a fork or a copy, and return that.

    Args:
        program: not changed.
        stages: checked before any of them runs.
        given: facts given from the start, to each stage.
        inplace: work on a fork, which shares the tensors.
        on_pass: called with the rule's and the pass's name before each pass.
        observer: sees what each stage did, and may refuse what all did by raising.
        watch: sees the Program before and after each pass.
    """
    stages, given = list(stages), list(given)
    kinds = set(map(type, _facts(given)))
    for stage in stages:
        stage.pipeline.check(kinds)
    if Peers not in kinds:
        refuse_sharded(program)
    work = fork(program) if inplace else copied(program)
    if watch is not None:
        watch.begin(work)
    for stage in stages:
        run_stage(work, stage, given, on_pass, watch)
        if observer is not None:
            observer.stage(work, stage)
    if observer is not None:
        observer.end(work)
    return work


def run_stage(
    work: Program,
    stage: Stage,
    given: Iterable[Any],
    on_pass: OnPass | None,
    watch: Watch | None = None,
) -> None:
    """Run one stage on a Program that no caller holds, and record what it did."""
    facts = Facts(_facts(given))
    at: list[str] = []

    def named(step: str) -> None:
        at[:] = [step]
        if on_pass is not None:
            on_pass(f"{stage.name}: {step}")

    with _strangers(stage, at):
        trace = stage.pipeline.run(work, facts, on_pass=named, watch=watch)
    if watch is not None:
        watch.stage(work, stage.rules, facts)
    if stage.calls:
        work.captured.passes += pass_records(stage, trace)
    else:
        work.captured.records += (record_of(work, stage, facts, trace),)


@contextmanager
def _strangers(stage: Stage, at: list[str]) -> Generator[None]:
    """Name the pass in what another distribution's raises."""
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:
        kinds = {step.name: type(step) for step in stage.pipeline.passes}
        kind = kinds.get(at[-1] if at else "")
        if kind is None or kind.__module__.partition(".")[0] == "fxprune":
            raise
        what = f"{type(error).__name__}: {error}"
        raise PassError(
            f"the pass {at[-1]!r} of {kind.__module__} raised {what}; nothing was changed"
        ) from error


def done(program: Program, work: Program, *, inplace: bool) -> Program:
    """Return what was worked on, or let the Program become it."""
    if not inplace:
        work.captured.replaced = []
        return work
    commit(program, work)
    return program


def _facts(given: Iterable[Any]) -> list[Any]:
    """Fill up what callers may give with empty facts."""
    there = {type(fact): fact for fact in (Importance(), GivenMasks(), Methods())}
    there.update((type(fact), fact) for fact in given)
    return list(there.values())
