"""Assertions on what a pass does to a Program."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fxprune.compiler import edit
from fxprune.errors import FxpruneError, InvariantError
from fxprune.pattern import Refusal
from fxprune.pipeline import Pass, Rewrite
from fxprune.program import Program
from fxprune.rewriter import Rewriter
from fxprune.rule import RewriteRule
from fxprune.testing.comparing import DifferenceError, difference
from fxprune.testing.failing import Failing, PlannedError
from fxprune.testing.promises import broken_promise
from fxprune.testing.remembering import Memory, program_text
from fxprune.testing.stepping import Given, Outcome, copy_and_run, facts_for, run_on
from fxprune.transaction import copied, fork

__all__ = [
    "assert_frozen",
    "assert_idempotent",
    "assert_promise",
    "assert_pure",
    "assert_refuses",
    "assert_transactional",
]


def assert_promise(program: Program, step: Pass, *, given: Given = (), trials: int = 2) -> None:
    """Assert that a pass keeps its promise, and leaves the Program as it must be.

    Args:
        program: what to run it on; not changed.
        step: the pass.
        given: facts that it needs, or a function that finds them of a Program.
        trials: how many inputs to draw for each mode, where it promises equal outputs.

    Raises:
        DifferenceError: says what is broken, by the first node or parameter.
    """
    try:
        after = copy_and_run(program, step, given).program
    except InvariantError as error:
        raise DifferenceError(str(error)) from error
    told = broken_promise(program, after, step, trials=trials)
    if told is not None:
        raise DifferenceError(told)


def assert_idempotent(
    program: Program, step: Pass | Callable[[Program], Program], *, given: Given = ()
) -> None:
    """Assert that a second run changes nothing; it may refuse.

    Args:
        program: what to run on; not changed.
        step: a pass, or a function that returns another Program.
        given: facts that the pass needs, or a function that finds them of a Program.

    Raises:
        DifferenceError: names the edits, the node or the parameter that the second run changed.

    Example:
        >>> import fxprune
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> assert_idempotent(program, fxprune.finalize)
    """
    if not isinstance(step, Pass):
        once = step(copied(program))
        _hold(once, step(copied(once)), "a second run")
        return
    once = copy_and_run(program, step, given)
    try:
        twice = copy_and_run(once.program, step, given)
    except InvariantError as error:
        raise DifferenceError(f"a second run: {error}") from error
    except FxpruneError:
        return
    if twice.trace.edits:
        told = _differing(once.program, twice.program) or "what it made is the same"
        raise DifferenceError(
            f"a second run of {step.name} makes {twice.trace.edits} edits: {told}"
        )
    _hold(once.program, twice.program, f"a second run of {step.name}")


def assert_transactional(
    program: Program,
    act: Rewrite | Callable[[Program], Any],
    *,
    given: Given = (),
    raises: type[BaseException] = Exception,
    most: int = 8,
) -> None:
    """Assert that what fails leaves the Program as it was: graphs, tensors, flags and generators.

    Args:
        program: as it was before and is afterwards.
        act: what fails on the Program, such as `lambda p: prune(p, recipe, inplace=True)`; or a
            pass, which is let fail after each of its edits.
        given: facts that the pass needs, or a function that finds them of a Program.
        raises: what `act` must raise.
        most: after how many edits, spread evenly, a pass is let fail.

    Raises:
        DifferenceError: nothing was raised, or something is otherwise than it was; says what.
    """
    if not isinstance(act, Rewrite):
        _fails_cleanly(program, act, raises, "what failed")
        return
    edits = copy_and_run(program, act, given).trace.edits
    numbers = range(1, edits + 1)[:: max(1, -(-edits // most))]
    for at in numbers:
        failing = Failing(act, at, facts_for(program, act, given))
        label = f"{act.name}, which failed after edit {at} of {edits},"
        _fails_cleanly(
            program, lambda p, step=failing: edit(p, step, inplace=True), PlannedError, label
        )


def assert_pure(program: Program, step: Pass, *, given: Given = (), random: bool = False) -> None:
    """Assert that a pass does the same each time, and changes nothing that it was not given.

    The Program that it edits shares its tensors with the caller's, which must stay as they are.

    Args:
        program: the caller's.
        step: the pass.
        given: facts that it needs, or a function that finds them of a Program.
        random: whether it may draw from the global generators; else two seeds must give the same.

    Raises:
        DifferenceError: says what changed, or which generator was drawn from.
    """
    memory = Memory(program)
    outcomes: list[Outcome] = []
    for seed in (0, 0 if random else 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = Memory(program)
            outcomes.append(run_on(fork(program), step, given))
            told = None if random else drawn.drawn()
        if told is not None:
            raise DifferenceError(f"{step.name}: {told}")
        told = memory.difference(program, generators=False)
        if told is not None:
            raise DifferenceError(f"{step.name} changed the caller's Program: {told}")
    first, second = outcomes
    _hold(first.program, second.program, f"another run of {step.name}")
    for kind in step.gives:
        told = difference(_seen(first.facts[kind]), _seen(second.facts[kind]))
        if told is not None:
            raise DifferenceError(
                f"another run of {step.name} gives another {kind.__name__}: {told}"
            )


def assert_frozen(program: Program, step: Pass, *, given: Given = ()) -> None:
    """Assert that a pass and the facts it gives are frozen dataclasses, and that it edits no fact.

    Args:
        program: what to run it on; not changed.
        step: the pass.
        given: facts that it needs, or a function that finds them of a Program.

    Raises:
        DifferenceError: names the class or the fact.
    """
    facts = facts_for(program, step, given)
    there = {kind: facts[kind] for kind in facts.kinds}
    seen = {kind: _seen(fact) for kind, fact in there.items()}
    work = copied(program)
    if isinstance(step, Rewrite):
        rewriter = Rewriter(work, step.name)
        step.run(rewriter, facts)
    else:
        facts.put(step.run(work, facts))  # pyright: ignore
    for kind, fact in there.items():
        if kind not in step.gives and facts[kind] is not fact:
            raise DifferenceError(
                f"{step.name} put another {kind.__name__} in the place of the given"
            )
        told = difference(_seen(fact), seen[kind])
        if told is not None:
            raise DifferenceError(f"{step.name} edited the {kind.__name__} it was given: {told}")
    for made in (step, *(facts[kind] for kind in step.gives)):
        parameters = getattr(type(made), "__dataclass_params__", None)
        if parameters is None or not parameters.frozen:
            raise DifferenceError(f"{type(made).__name__} is no frozen dataclass")


def assert_refuses(
    program: Program,
    step: Rewrite | RewriteRule | Sequence[RewriteRule] | Callable[[Program], Any],
    reason: str,
    node: str | None = None,
    *,
    given: Given = (),
) -> None:
    """Assert that a pass or its rules refuse, with a reason and the node in the way.

    Args:
        program: what to run on; not changed.
        step: a pass, rules, or a function that raises an FxpruneError.
        reason: as the Refusal has it; of an error a part of the message will do.
        node: the name of the node.
        given: facts that the pass needs, or a function that finds them of a Program.

    Raises:
        DifferenceError: tells what was refused in its place.
    """
    told: list[str] = []
    for refusal in _refusals(copied(program), step, given):
        if isinstance(refusal, FxpruneError):
            text = str(refusal)
            fits = reason in text and (node is None or node in text)
        else:
            text, name = str(refusal), None if refusal.node is None else refusal.node.name
            fits = refusal.reason == reason and node in (None, name)
        if fits:
            return
        told.append(text)
    wanted = reason if node is None else f"{reason} (node {node})"
    raise DifferenceError(f"not refused: {wanted!r}; refused: {told or 'nothing'}")


def _refusals(program: Program, step: Any, given: Given) -> Sequence[Refusal | FxpruneError]:
    try:
        if isinstance(step, Rewrite):
            return run_on(program, step, given).trace.refusals
        if isinstance(step, RewriteRule):
            step = [step]
        if not isinstance(step, Sequence):
            step(program)
            return ()
        rewriter = Rewriter(program, "rules")
        rewriter.apply(list(step))
    except FxpruneError as error:
        return (error,)
    return rewriter.refusals


def _fails_cleanly(
    program: Program, act: Callable[[Program], Any], raises: type[BaseException], label: str
) -> None:
    memory = Memory(program)
    try:
        act(program)
    except raises:
        told = memory.difference(program)
        if told is not None:
            raise DifferenceError(f"{label} left the Program changed: {told}") from None
        return
    raise DifferenceError(f"{label} raised no {raises.__name__}")


def _hold(first: Program, second: Program, label: str) -> None:
    told = _differing(first, second)
    if told is not None:
        raise DifferenceError(f"{label} gives another Program: {told}")


def _differing(first: Program, second: Program) -> str | None:
    lines = zip(program_text(first).splitlines(), program_text(second).splitlines(), strict=False)
    for old, new in lines:
        if old != new:
            return f"the first node that differs is {new.strip()!r}, and was {old.strip()!r}"
    return difference(dict(first.state_dict()), dict(second.state_dict()))


def _seen(fact: Any) -> Any:
    """Return what a fact says, as a nest of tensors and texts."""
    sources = getattr(fact, "sources", None)
    if isinstance(sources, dict):
        return {name: source.chunk(0, source.units).clone() for name, source in sources.items()}
    tensors = getattr(fact, "tensors", None)
    if isinstance(tensors, dict):
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}
    # The address of a function says nothing.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(fact))
