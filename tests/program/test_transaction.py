"""All or nothing: whatever goes wrong, and whenever, the Program is as it was."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune

import fxprune
from fxprune import functional as prune
from fxprune.compiler import run
from fxprune.errors import AmountError, InvariantError
from fxprune.program import forks
from fxprune.program.program import Program
from fxprune.rewrite.rewriter import Rewriter
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.assert_pass import snapshot
from fxprune.testing.comparing import difference, is_same
from tests.tools.helpers import inputs, model, program

Operation = Callable[[Program], Any]
RECIPE = {"rule": [{"select": "*.weight", "method": "l1_unstructured", "amount": 0.5}]}
EDITS = [
    name for name in vars(Rewriter) if not name.startswith("_") and callable(vars(Rewriter)[name])
]


def prune_all(p: Program) -> Any:
    return fxprune.prune(p, RECIPE, inplace=True)


def prune_globally(p: Program) -> Any:
    pairs = [(p, name) for name in p.aliases]
    return prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.5)


def prune_again(p: Program) -> Any:
    return prune.l1_unstructured(p, next(iter(p.masks)), 1)


def remove_one(p: Program) -> Any:
    return prune.remove(p, next(iter(p.masks)))


def finalize(p: Program) -> Any:
    return fxprune.finalize(p, inplace=True)


def unmask(p: Program) -> Any:
    return fxprune.unmask(p, inplace=True)


ON_PLAIN = [prune_all, prune_globally]
ON_MASKED = [prune_again, remove_one, finalize, unmask]
each_operation = pytest.mark.parametrize("operation", [*ON_PLAIN, *ON_MASKED])


def made_for(operation: Operation, name: str) -> Program:
    p = program(name).train()
    return p if operation in ON_PLAIN else fxprune.prune(p, RECIPE)


class Stop(Exception):  # noqa: N818 - it is no error
    """Raised by a test in the middle of something."""


def run_with_stops(
    p: Program, operation: Operation, stopping: Callable[[int], Any], error: type[BaseException]
) -> int:
    """Stop an operation at each of its steps, then let it run; return how many stops there were.

    Args:
        p: must be as before after each stop.
        operation: what is stopped.
        stopping: from the number of a step to a context in which that step raises.
        error: what is raised.
    """
    before = snapshot(p)
    for step in itertools.count(1):
        with stopping(step):
            try:
                operation(p)
            except error:
                assert snapshot(p) == before, f"step {step} left a trace"
                continue
        assert snapshot(p) != before
        return step - 1
    raise AssertionError


# An exception in a pass


@contextmanager
def stopped_edit(step: int) -> Generator[None]:
    """Let the Rewriter raise at its step-th call, whichever method that is."""
    calls = itertools.count(1)

    def stopping(real: Callable[..., Any]) -> Callable[..., Any]:
        def method(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == step:
                raise Stop
            return real(*args, **kwargs)

        return method

    with pytest.MonkeyPatch.context() as patch:
        for name in EDITS:
            patch.setattr(Rewriter, name, stopping(getattr(Rewriter, name)))
        yield


@pytest.mark.parametrize("name", ["tied", "modes"])
@each_operation
def test_an_exception_at_any_edit_changes_nothing(operation: Operation, name: str):
    p = made_for(operation, name)
    twin = copy.deepcopy(p)
    assert run_with_stops(p, operation, stopped_edit, Stop) >= 3
    operation(twin)
    assert text(p) == text(twin)
    assert is_same(p(*inputs(name)), twin(*inputs(name)))


@each_operation
def test_a_broken_invariant_changes_nothing(operation: Operation, monkeypatch: pytest.MonkeyPatch):
    p = made_for(operation, "tied")
    before, outputs = snapshot(p), p(*inputs("tied"))

    def refuse(program: Program, by: str) -> None:
        raise InvariantError(f"{by} broke it")

    monkeypatch.setattr("fxprune.compiler.pipeline.check_invariants", refuse)
    with pytest.raises(InvariantError, match="broke it"):
        operation(p)
    assert snapshot(p) == before
    assert is_same(p(*inputs("tied")), outputs)


def test_a_broken_promise_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    p = made_for(finalize, "mlp")
    before = snapshot(p)
    observed = iter([[torch.zeros(1)], [torch.ones(1)]])
    monkeypatch.setattr("fxprune.verification.proof.observe", lambda *_: next(observed))
    with pytest.raises(InvariantError, match="promised equal outputs, but output 0 differs"):
        finalize(p)
    assert snapshot(p) == before


@pytest.mark.smoke
def test_a_later_rule_that_fails_takes_the_earlier_ones_back():
    p = program("mlp")
    before = snapshot(p)
    rules = [{**RECIPE["rule"][0], "amount": amount} for amount in (0.5, 5)]
    with pytest.raises(AmountError, match="more than the"):
        fxprune.prune(p, {"rule": rules}, inplace=True)
    assert snapshot(p) == before


# Ctrl-C while the edited fork takes the Program's place


@contextmanager
def interrupted_commit(step: int) -> Generator[None]:
    """Raise KeyboardInterrupt at the step-th line that the commit runs."""
    lines = itertools.count(1)

    def on_line(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and next(lines) == step:
            raise KeyboardInterrupt
        return on_line

    def on_call(frame: FrameType, event: str, arg: Any) -> Any:
        return on_line if frame.f_code.co_filename == forks.__file__ else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "commit", traced(forks.commit, on_call))
        yield


def traced(function: Callable[..., Any], tracer: Any) -> Callable[..., Any]:
    def run(*args: Any) -> None:
        outer = sys.gettrace()
        sys.settrace(tracer)
        try:
            function(*args)
        finally:
            sys.settrace(outer)

    return run


@pytest.mark.parametrize("operation", [prune_all, finalize, remove_one])
def test_an_interrupt_at_any_line_of_the_commit_changes_nothing(operation: Operation):
    p = made_for(operation, "tied")
    twin = copy.deepcopy(p)
    assert run_with_stops(p, operation, interrupted_commit, KeyboardInterrupt) > 20
    operation(twin)
    assert difference(dict(p.state_dict()), dict(twin.state_dict())) is None
    assert is_same(p(*inputs("tied")), twin(*inputs("tied")))


@each_operation
def test_an_interrupt_after_the_code_is_taken_changes_nothing(
    operation: Operation, monkeypatch: pytest.MonkeyPatch
):
    p = made_for(operation, "modes")
    before, outputs = snapshot(p), p(*inputs("modes"))
    real, interrupts = Program._take_code, iter([True])

    def take_code(self: Program, like: Program) -> None:
        real(self, like)
        if self is p and next(interrupts, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(Program, "_take_code", take_code)
    with pytest.raises(KeyboardInterrupt):
        operation(p)
    assert snapshot(p) == before
    assert is_same(p(*inputs("modes")), outputs)


def test_a_fork_that_lost_a_module_is_refused():
    p = program("mlp")
    before, work = snapshot(p), forks.fork(p)
    del work._modules["1"]
    with pytest.raises(InvariantError, match="the edited program lost the module '1'"):
        forks.commit(p, work)
    assert snapshot(p) == before


# Forks and copies


def test_a_fork_has_its_own_tree_over_the_same_tensors():
    p = fxprune.prune(program("conv"), RECIPE)
    before, work = snapshot(p), forks.fork(p)
    assert work.get_submodule("1") is not p.get_submodule("1")
    assert [id(t) for t in work.state_dict(keep_vars=True).values()] == [
        id(t) for t in p.state_dict(keep_vars=True).values()
    ]
    fxprune.finalize(work, inplace=True)
    prune.identity(work, "0.bias")
    assert dict(p.masks).keys() == {"0.weight", "1.weight", "4.weight"}
    assert snapshot(p)["the graph"] == before["the graph"]


@each_operation
def test_in_place_the_parameters_stay_the_same_objects(operation: Operation):
    p = made_for(operation, "tied")
    names = list(p.captured.first)
    modules, parameters = list(p.modules()), [p.parameter(name) for name in names]
    operation(p)
    assert list(p.modules()) == modules
    assert all(p.parameter(name) is old for name, old in zip(names, parameters, strict=True))
    assert p.captured.replaced == []


def test_without_inplace_the_given_program_stays_and_shares_nothing():
    p = program("tied")
    before = snapshot(p)
    masked = fxprune.prune(p, RECIPE)
    final = fxprune.finalize(masked)
    plain = fxprune.unmask(masked)
    addresses = [t.data_ptr() for q in (p, masked, final, plain) for t in q.parameters()]
    assert len(set(addresses)) == 4
    assert snapshot(p) == before
    assert list(masked.masks) == ["emb.weight"]
    assert all(not q.masks and q.captured.replaced == [] for q in (final, plain))


def test_an_optimizer_that_was_there_before_goes_on_working():
    source, p = model("mlp"), program("mlp")
    ours = torch.optim.SGD(p.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    theirs = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    held = list(ours.param_groups[0]["params"])

    def step() -> None:
        for net, optimizer in ((p, ours), (source, theirs)):
            optimizer.zero_grad()
            net(*inputs("mlp")).square().mean().backward()
            optimizer.step()

    step()
    prune.l1_unstructured(p, "0.weight", 0.5)
    torch_prune.l1_unstructured(source.get_submodule("0"), "weight", 0.5)
    step()
    prune.ln_structured(p, "0.weight", 1, 2, 0)
    torch_prune.ln_structured(source.get_submodule("0"), "weight", 1, 2, 0)
    step()
    prune.remove(p, "0.weight")
    torch_prune.remove(source.get_submodule("0"), "weight")
    step()
    assert difference(dict(p.state_dict()), dict(source.state_dict())) is None
    assert {id(t) for t in p.parameters()} == {id(t) for t in held}
    assert len(ours.state) == len(held)
