"""The check itself: it must see each way in which a Program can differ from torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fxprune import functional as fx_prune
from fxprune.program.program import Program
from fxprune.testing.architecture import Activation, Arch, Dropout, Linear, Norm
from fxprune.testing.calls import Call
from fxprune.testing.comparing import DifferenceError
from fxprune.testing.parity import check_sequence
from tests.functional.parity.run import failure_of, main
from tests.models.cases import Case

ARCH = Arch("features", 4, (Linear(6), Activation("relu"), Norm("batch"), Dropout(0.2), Linear(2)))
FIRST, LAST = "layers.0.weight", "layers.4.weight"
HALF = Call("l1_unstructured", (FIRST,))
AGAIN = Call("ln_structured", (FIRST,), amount=1)
TOO_MANY = Call("l1_unstructured", (FIRST,), amount=1000)

Edit = Callable[[Program], None]


def flip_mask(program: Program) -> None:
    mask = program.masks[FIRST]
    mask[0, 0] = 1 - mask[0, 0]


def change_bias(program: Program) -> None:
    with torch.no_grad():
        program.parameter("layers.0.bias").add_(1)


def flip_zeros_sign(program: Program) -> None:
    with torch.no_grad():
        program.parameter(FIRST).add_(0.0)  # -0.0 + 0.0 is 0.0


def draw(program: Program) -> None:
    torch.rand(1)


def change_statistics(program: Program) -> None:
    program.get_buffer("layers.2.running_mean").add_(1)


def reorder(program: Program) -> None:
    owner = program.get_submodule("layers.0")
    owner.register_parameter("bias", owner._parameters.pop("bias"))


def unmask(program: Program) -> None:
    program.masks[FIRST].fill_(1)


def freeze(program: Program) -> None:
    program.parameter(LAST).requires_grad_(False)


def after(function: Any, edit: Edit) -> Any:
    """The function, with an edit of the Program behind it, whatever it does."""

    def edited(program: Program, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(program, *args, **kwargs)
        finally:
            edit(program)

    return edited


def test_torchs_own_sequence_passes() -> None:
    check_sequence(ARCH, (HALF, AGAIN, TOO_MANY, Call("remove", (FIRST,)), HALF))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (flip_mask, "masks"),
        (unmask, "masks"),
        (change_bias, "state dict"),
        (change_statistics, "state dict"),
        (reorder, "keys of the state dict"),
        (draw, "generator"),
        (freeze, "parameters with a gradient|gradients"),
    ],
)
def test_an_edit_of_the_program_is_seen(
    monkeypatch: pytest.MonkeyPatch, edit: Edit, told: str
) -> None:
    monkeypatch.setattr(fx_prune, "l1_unstructured", after(fx_prune.l1_unstructured, edit))
    with pytest.raises(DifferenceError, match=told):
        check_sequence(ARCH, (HALF,))


def test_a_refused_call_that_changes_something_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fx_prune, "l1_unstructured", after(fx_prune.l1_unstructured, change_bias))
    with pytest.raises(DifferenceError, match="state dict"):
        check_sequence(ARCH, (TOO_MANY,))


def test_the_sign_of_a_zero_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fx_prune, "remove", after(fx_prune.remove, flip_zeros_sign))
    with pytest.raises(DifferenceError, match="state dict"):
        check_sequence(ARCH, (HALF, Call("remove", (FIRST,))))


def test_doing_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (Call("identity", (LAST,)), AGAIN, Call("remove", (FIRST,))):
        with monkeypatch.context() as patch:
            patch.setattr(fx_prune, call.kind, lambda *_, **__: None)
            with pytest.raises(DifferenceError):
                check_sequence(ARCH, (HALF, call))


def test_another_refusal_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise TypeError("another kind")

    monkeypatch.setattr(fx_prune, "l1_unstructured", refuse)
    with pytest.raises(DifferenceError, match="one refuses"):
        check_sequence(ARCH, (HALF,))
    with pytest.raises(DifferenceError, match="another kind of error"):
        check_sequence(ARCH, (TOO_MANY,))
    monkeypatch.setattr(fx_prune, "l1_unstructured", lambda *_, **__: None)
    with pytest.raises(DifferenceError, match="one refuses"):
        check_sequence(ARCH, (TOO_MANY,))


def test_a_wrong_forward_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Program._run

    def louder(self: Program, *args: Any) -> Any:
        return run(self, *args) * (1 + 2**-20)

    monkeypatch.setattr(Program, "_run", louder)
    with pytest.raises(DifferenceError, match="forward"):
        check_sequence(ARCH, (HALF,))


def test_a_crash_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(ARCH, (HALF,))
    assert failure_of(case) is None
    monkeypatch.setattr(fx_prune, "l1_unstructured", lambda *_, **__: None)
    assert "masks" in str(failure_of(case)) or "structures" in str(failure_of(case))
    monkeypatch.setattr("tests.functional.parity.run.check_sequence", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in str(failure_of(case))


@pytest.mark.parametrize(
    ("results", "code", "last"),
    [
        ([("a", None), ("b", None)], 0, "2 sequences, 0 differing"),
        ([("a", "masks"), ("b", None)], 1, "2 sequences, 1 differing"),
        ([("a", None)], 1, "1 sequences, 0 differing"),  # a process was killed
    ],
)
def test_the_command_counts_and_fails(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    results: list[tuple[str, str | None]],
    code: int,
    last: str,
) -> None:
    monkeypatch.setattr("tests.functional.parity.run.results_of", lambda *_: iter(results))
    assert main(["--count", "2"]) == code
    assert capsys.readouterr().out.splitlines()[-1] == last
