"""Assertions on what a pass does to a Program.

Its promise is held by fxprune's checker; what it must not touch is remembered and compared.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.compiler import Pipeline, Trace, edit
from fxprune.errors import FxpruneError, InvariantError, PassError, PassTypeError
from fxprune.program import Program, copied, fork, graph_text, parameters
from fxprune.rewrite import (
    Facts,
    GivenMasks,
    Importance,
    Methods,
    Pass,
    Refusal,
    Rewrite,
    Rewriter,
    RewriteRule,
    Selection,
)
from fxprune.testing.comparing import DifferenceError, difference, entry_difference
from fxprune.testing.drawing import prunable
from fxprune.verification import PromiseCheck, check_invariants


def assert_promise(
    program: Program, step: Pass, *, given: GivenFacts = (), trials: int = 2
) -> None:
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
    if fault := broken_promise(program, after, step, trials=trials):
        raise DifferenceError(fault)


def assert_idempotent(
    program: Program, step: Pass | Callable[[Program], Program], *, given: GivenFacts = ()
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
        _check_equal(once, step(copied(once)), "a second run")
        return
    once = copy_and_run(program, step, given)
    try:
        twice = copy_and_run(once.program, step, given)
    except InvariantError as error:
        raise DifferenceError(f"a second run: {error}") from error
    except FxpruneError:
        return
    if twice.trace.edits:
        fault = _program_difference(once.program, twice.program) or "what it made is the same"
        raise DifferenceError(
            f"a second run of {step.name} makes {twice.trace.edits} edits: {fault}"
        )
    _check_equal(once.program, twice.program, f"a second run of {step.name}")


def assert_transactional(
    program: Program,
    act: Rewrite | Callable[[Program], Any],
    *,
    given: GivenFacts = (),
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
        DifferenceError: nothing was raised, or something changed; says what.
    """
    if not isinstance(act, Rewrite):
        _check_fails_cleanly(program, act, raises, "what failed")
        return
    edits = copy_and_run(program, act, given).trace.edits
    numbers = range(1, edits + 1)[:: max(1, -(-edits // most))]
    for at in numbers:
        failing = FailAfterEdit(act, at, facts_for(program, act, given))
        label = f"{act.name}, which failed after edit {at} of {edits},"
        _check_fails_cleanly(
            program, lambda p, step=failing: edit(p, step, inplace=True), PlannedError, label
        )


def assert_pure(
    program: Program, step: Pass, *, given: GivenFacts = (), random: bool = False
) -> None:
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
    outcomes: list[PassRun] = []
    for seed in (0, 0 if random else 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = Memory(program)
            outcomes.append(run_on(fork(program), step, given))
            fault = None if random else drawn.generator_fault()
        if fault is not None:
            raise DifferenceError(f"{step.name}: {fault}")
        if fault := memory.difference(program, generators=False):
            raise DifferenceError(f"{step.name} changed the caller's Program: {fault}")
    first, second = outcomes
    _check_equal(first.program, second.program, f"another run of {step.name}")
    for kind in step.gives:
        if fault := difference(_fact_values(first.facts[kind]), _fact_values(second.facts[kind])):
            raise DifferenceError(
                f"another run of {step.name} gives another {kind.__name__}: {fault}"
            )


def assert_frozen(program: Program, step: Pass, *, given: GivenFacts = ()) -> None:
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
    seen = {kind: _fact_values(fact) for kind, fact in there.items()}
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
        if fault := difference(_fact_values(fact), seen[kind]):
            raise DifferenceError(f"{step.name} edited the {kind.__name__} it was given: {fault}")
    for frozen in (step, *(facts[kind] for kind in step.gives)):
        parameters = getattr(type(frozen), "__dataclass_params__", None)
        if parameters is None or not parameters.frozen:
            raise DifferenceError(f"{type(frozen).__name__} is no frozen dataclass")


def assert_refuses(
    program: Program,
    step: Rewrite | RewriteRule | Sequence[RewriteRule] | Callable[[Program], Any],
    reason: str,
    node: str | None = None,
    *,
    given: GivenFacts = (),
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
    refused: list[str] = []
    for refusal in _refusals(copied(program), step, given):
        if isinstance(refusal, FxpruneError):
            text = str(refusal)
            fits = reason in text and (node is None or node in text)
        else:
            text, name = str(refusal), None if refusal.node is None else refusal.node.name
            fits = refusal.reason == reason and node in (None, name)
        if fits:
            return
        refused.append(text)
    wanted = reason if node is None else f"{reason} (node {node})"
    raise DifferenceError(f"not refused: {wanted!r}; refused: {refused or 'nothing'}")


def _refusals(program: Program, step: Any, given: GivenFacts) -> Sequence[Refusal | FxpruneError]:
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


def _check_fails_cleanly(
    program: Program, act: Callable[[Program], Any], raises: type[BaseException], label: str
) -> None:
    memory = Memory(program)
    try:
        act(program)
    except raises:
        if fault := memory.difference(program):
            raise DifferenceError(f"{label} left the Program changed: {fault}") from None
        return
    raise DifferenceError(f"{label} raised no {raises.__name__}")


def _check_equal(first: Program, second: Program, label: str) -> None:
    if fault := _program_difference(first, second):
        raise DifferenceError(f"{label} gives another Program: {fault}")


def _program_difference(first: Program, second: Program) -> str | None:
    lines = zip(program_text(first).splitlines(), program_text(second).splitlines(), strict=False)
    for old, new in lines:
        if old != new:
            return f"the first node that differs is {new.strip()!r}, and was {old.strip()!r}"
    return difference(dict(first.state_dict()), dict(second.state_dict()))


def _fact_values(fact: Any) -> Any:
    """Return what a fact says, as a nest of tensors and texts."""
    sources = getattr(fact, "sources", None)
    if isinstance(sources, dict):
        return {name: source.chunk(0, source.units).clone() for name, source in sources.items()}
    tensors = getattr(fact, "tensors", None)
    if isinstance(tensors, dict):
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}
    # The address of a function says nothing.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(fact))


def broken_promise(before: Program, after: Program, step: Pass, *, trials: int) -> str | None:
    """Return how a pass broke what it promised, on so many inputs a mode; None where it kept it."""
    try:
        check_invariants(after, step.name)
    except InvariantError as error:
        return str(error)
    if step.promise == "changes":
        return None
    broken = PromiseCheck.of(before, step.promise).violation(after, bound=step.bound, trials=trials)
    return None if broken is None else f"{step.name} {broken}"


def program_text(program: Program) -> str:
    """Write the graphs of a Program, each under its mode where there are two."""
    graphs = {mode: graph_text(graph) for mode, graph in program.graphs.items()}
    if len(graphs) == 1:
        return next(iter(graphs.values()))
    return "\n".join(f"[{mode}]\n{graph}" for mode, graph in graphs.items())


def snapshot(program: Program) -> dict[str, Any]:
    """Take all that a failed operation must leave: bytes, keys, objects, flags and graphs."""
    state = [(key, _bytes(tensor)) for key, tensor in program.state_dict().items()]
    return {"state": state, "replaced": list(program.captured.replaced), **_parts(program)}


class Memory:
    """What a model was, and the state of the global random generators.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> memory = Memory(model)
        >>> _ = model.bias.data.fill_(7.0)
        >>> memory.difference(model).startswith("'bias', entry (0,): ")
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self._values = {key: value.detach().clone() for key, value in _values(model).items()}
        self._parts = _parts(model)
        self._generators = _generators()

    def difference(self, model: nn.Module, *, generators: bool = True) -> str | None:
        """Return what changed first in the same model; None where nothing did."""
        if fault := self._value_difference(_values(model)):
            return fault
        parts = _parts(model)
        changed = next((key for key in self._parts if parts[key] != self._parts[key]), None)
        if changed is not None:
            return f"{changed}{_first_line(self._parts[changed], parts[changed])}"
        return self.generator_fault() if generators else None

    def generator_fault(self) -> str | None:
        """Return which global random generator was drawn from, or None."""
        drawn = [name for name, state in _generators().items() if state != self._generators[name]]
        return f"the global generator of {drawn[0]} was drawn from" if drawn else None

    def _value_difference(self, values: dict[str, Tensor]) -> str | None:
        if list(values) != list(self._values):
            changed = sorted(set(values) ^ set(self._values))
            named = f"{changed[0]!r} came or went" if changed else "their order"
            return f"the keys of parameters and buffers: {named}"
        for key, before in self._values.items():
            if _bytes(before) != _bytes(values[key]) or before.dtype != values[key].dtype:
                return f"{key!r}{entry_difference(before, values[key])} (before first)"
        return None


def _values(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _parts(model: nn.Module) -> dict[str, Any]:
    """Take what is not values, by what messages call it."""
    parts: dict[str, Any] = {}
    if isinstance(model, Program):
        parts["the graph"] = program_text(model)
        parts["the code"] = model.code
        parts["the masks"] = list(parameters.masks(model))
        parts["the names"] = list(model.captured.first.items())
        parts["the records"] = [repr(record) for record in model.captured.records]
    parts["the parameters' identity"] = [(name, id(p)) for name, p in model.named_parameters()]
    for path, module in model.named_modules():
        what = f"an attribute of {path!r}" if path else "an attribute of the model"
        parts[what] = _attributes(module)
    return parts


def _first_line(before: Any, after: Any) -> str:
    """Say which line of a text changed first, or which key."""
    if isinstance(before, str):
        lines = zip([*before.splitlines(), ""], [*after.splitlines(), ""], strict=False)
        old, new = next((pair for pair in lines if pair[0] != pair[1]), ("", ""))
        return f": {old.strip()!r} before, {new.strip()!r} after"
    if isinstance(before, dict):
        changed = [key for key in before if after.get(key, None) != before[key]]
        return f": {changed[0]!r} changed" if changed else " came"
    return ""


def _generators() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),
    }


def _bytes(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        return b""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Take a module's attributes in order, its tensors by identity, but for graphs and data."""
    kept = {k: v for k, v in vars(module).items() if k not in ("graphs", "captured", "_graph")}
    return {key: _comparable(value) for key, value in kept.items()}


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, id(part)) for key, part in value.items()]
    # Of what is a tensor the identity will do: == of tensors gives no single answer.
    if isinstance(value, Tensor):
        return id(value)
    return copy.copy(value) if isinstance(value, set | Sequence) else value


class PlannedError(Exception):
    """The failure that was planned."""


@dataclass(frozen=True)
class FailAfterEdit(Rewrite):
    """Another pass, which fails just after the edit of that number, from 1."""

    name: ClassVar[str] = "failing"

    step: Rewrite
    at: int
    given: Facts

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Run the pass until it fails."""
        count = rewriter._count

        def count_and_fail(*args: Any) -> None:
            count(*args)
            if rewriter.edits >= self.at:
                raise PlannedError(f"after edit {self.at}")

        rewriter._count = count_and_fail
        self.step.run(rewriter, self.given)


GivenFacts = Callable[[Program], Iterable[Any]] | Iterable[Any]
"""Facts beside those that every pass gets, or a function that finds them of a Program."""


@dataclasses.dataclass(frozen=True)
class PassRun:
    """What a pass made of a Program: the facts after it, and its edits and refusals."""

    program: Program
    facts: Facts
    trace: Trace


def instance_of(step: Pass | type[Pass]) -> Pass:
    """Return a pass; of a class, the one with the default options."""
    if not isinstance(step, type):
        if not isinstance(step, Pass):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PassTypeError(f"{step!r} is no pass; give a Rewrite, an Analysis or its class")
        return step
    try:
        made: Any = step()
    except TypeError as error:
        raise PassTypeError(f"{step.__name__} needs options: {error}; give an instance") from error
    return instance_of(made)


def facts_for(program: Program, step: Pass, given: GivenFacts = ()) -> Facts:
    """Return facts to run a pass with: all parameters are selected, nothing else but `given`."""
    facts = Facts([Importance(), GivenMasks(), Methods()])
    if Selection in step.needs:
        facts.put(Selection(tuple(prunable(program))))
    for fact in given(program) if callable(given) else given:
        facts.put(fact)
    missing = [kind.__name__ for kind in step.needs if kind not in facts.kinds]
    if missing:
        raise PassError(f"the pass {step.name!r} needs {missing[0]}; give it by given=")
    return facts


def run_on(program: Program, step: Pass, given: GivenFacts = ()) -> PassRun:
    """Run a pass on a Program, which is edited, and check it as every pipeline does."""
    facts = facts_for(program, step, given)
    return PassRun(program, facts, Pipeline((step,)).run(program, facts))


def copy_and_run(program: Program, step: Pass, given: GivenFacts = ()) -> PassRun:
    """Run a pass on a copy of a Program."""
    return run_on(copied(program), step, given)
