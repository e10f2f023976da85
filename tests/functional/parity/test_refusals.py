"""What torch refuses, fxprune refuses with an error of the same kind, and changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

import fxprune
from fxprune import functional as fx_prune
from fxprune.testing.comparing import difference

At = Callable[[str], tuple[Any, str]]
"""From a full parameter name to the (module, name) pair that a library wants."""
Ask = Callable[[Any, At], Any]

# torch 2.14 takes "nuc" over the last two dimensions, whichever was asked for; fxprune refuses.
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
MATRIX_NORMS = ("fro", "nuc") if TORCH < (2, 14) else ("fro",)
WEIGHT, BIAS, LAST, LAST_BIAS = "0.weight", "0.bias", "2.weight", "2.bias"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))


@cache
def captured() -> fxprune.Program:
    return fxprune.capture(model(), (torch.zeros(3, 2, 4, 4),))


def torchs() -> tuple[nn.Module, At]:
    source = model()

    def at(name: str) -> tuple[Any, str]:
        path, _, attribute = name.rpartition(".")
        return source.get_submodule(path), attribute

    return source, at


def ours() -> tuple[fxprune.Program, At]:
    program = copy.deepcopy(captured())
    return program, lambda name: (program, name)


def error_of(ask: Ask, library: Any, at: At) -> Exception | None:
    torch.manual_seed(3)
    try:
        ask(library, at)
    except Exception as error:  # noqa: BLE001 - every kind of refusal is an answer here
        return error
    return None


def call(kind: str, name: str = WEIGHT, **arguments: Any) -> Ask:
    return lambda prune, at: getattr(prune, kind)(*at(name), **arguments)


def all_of(*names: str, method: str = "L1Unstructured", **arguments: Any) -> Ask:
    return lambda prune, at: prune.global_unstructured(
        list(map(at, names)), getattr(prune, method), **arguments
    )


def scored(name: str, scores: Tensor) -> Ask:
    return lambda prune, at: prune.global_unstructured(
        [at(BIAS), at(LAST), at(LAST_BIAS)],
        prune.L1Unstructured,
        importance_scores={at(name): scores},
        amount=0.5,
    )


def in_turn(*asks: Ask) -> Ask:
    return lambda prune, at: [ask(prune, at) for ask in asks]


def amounts(kind: str, *more: int, **arguments: Any) -> dict[str, Ask]:
    drawn: list[Any] = [
        1.5, -0.1, -1, float("nan"), float("inf"), "0.5", None, [1], 0.5j, torch.tensor(0.5),
        np.float64(0.5), np.float32(0.3), np.int64(3), Fraction(1, 3), 2.0, 1.0, *more,
    ]  # fmt: skip
    return {f"{kind} {a!r}": call(kind, amount=a, **arguments) for a in drawn}


SAME: dict[str, Ask] = {
    **amounts("l1_unstructured", 72, 73),
    **amounts("random_unstructured", 72, 73),
    **amounts("ln_structured", 4, 5, n=2, dim=0),
    **amounts("random_structured", 4, 5, dim=0),
    **{f"global {a!r}": all_of(WEIGHT, LAST, amount=a) for a in (1.5, -1, "0.5", 120, 121)},
    **{f"ln dim {d}": call("ln_structured", amount=0.5, n=2, dim=d) for d in range(-6, 6)},
    **{f"random dim {d}": call("random_structured", amount=0.5, dim=d) for d in range(-6, 6)},
    **{
        f"norm {n!r}": call("ln_structured", amount=0.5, n=n, dim=0)
        for n in (0, 1, -1, 2.5, float("inf"), float("-inf"), *MATRIX_NORMS)
    },
    "norms of a vector": call("ln_structured", BIAS, amount=0.5, n=2, dim=0),
    "random channels of a vector": call("random_structured", BIAS, amount=0.5, dim=0),
    "no such parameter": call("identity", "0.weigth"),
    "no parameters there": call("l1_unstructured", "1.weight", amount=0.5),
    "remove what has no mask": call("remove"),
    "mask of another shape": call("custom_from_mask", mask=torch.ones(4, 2, 3)),
    "mask that would broadcast": call("custom_from_mask", mask=torch.ones(())),
    "mask of integers": call("custom_from_mask", BIAS, mask=torch.tensor([1, 0, 2, 1])),
    "scores of another shape": call(
        "l1_unstructured", BIAS, amount=0.5, importance_scores=torch.ones(5)
    ),
    "norm scores of another shape": call(
        "ln_structured", amount=0.5, n=1, dim=0, importance_scores=torch.ones(4)
    ),
    "scores of integers": call(
        "l1_unstructured", BIAS, amount=0.5, importance_scores=torch.tensor([4, 1, 3, 2])
    ),
    "scores of doubles": call(
        "l1_unstructured", BIAS, amount=0.5, importance_scores=torch.eye(4).double()[1]
    ),
    "global of nothing": all_of(amount=0.5),
    "global of a number": lambda prune, at: prune.global_unstructured(3, prune.L1Unstructured),
    "global without amount": all_of(WEIGHT),
    "global with an unknown argument": all_of(WEIGHT, amount=0.5, share=1),
    "global with channels": all_of(WEIGHT, method="RandomStructured", amount=0.5),
    "global with a given mask": all_of(BIAS, method="CustomFromMask", mask=torch.ones(4)),
    "global with listed scores": all_of(WEIGHT, amount=0.5, importance_scores=[1.0]),
    "global with some scores": scored(LAST, torch.zeros(3, 16)),
    "more than is alive": in_turn(
        call("l1_unstructured", amount=70),
        call("l1_unstructured", amount=2),
    ),
}
# Torch stumbles over these somewhere inside: any refusal will do. It takes False as 0, a slip too.
REFUSED: dict[str, Ask] = {
    "a truth value": call("l1_unstructured", amount=True),
    "a truth value at random": call("random_unstructured", amount=True),
    "a truth value globally": all_of(WEIGHT, LAST, amount=True),
    "channels by a truth value": call("random_structured", amount=True, dim=0),
    **{f"ln dim {d!r}": call("ln_structured", amount=0.5, n=2, dim=d) for d in (None, 0.0, "0")},
    **{f"dim {d!r}": call("random_structured", amount=0.5, dim=d) for d in (None, 0.0, "0")},
    "an unknown norm": call("ln_structured", amount=0.5, n="l2", dim=0),
    "a listed mask": call("custom_from_mask", BIAS, mask=[1, 0, 1, 0]),
    "global scores of another shape": scored(LAST_BIAS, torch.zeros(5)),
}


@pytest.mark.parametrize("case", SAME)
def test_refusals_and_results_are_torchs(case: str) -> None:
    source, at_source = torchs()
    program, at_program = ours()
    theirs = error_of(SAME[case], torch_prune, at_source)
    mine = error_of(SAME[case], fx_prune, at_program)
    if theirs is None:
        assert mine is None
        assert difference(dict(program.state_dict()), dict(source.state_dict())) is None
        return
    assert isinstance(mine, type(theirs)), f"torch: {theirs!r}; fxprune: {mine!r}"


@pytest.mark.parametrize("case", REFUSED)
def test_what_torch_stumbles_over_is_refused(case: str) -> None:
    assert error_of(REFUSED[case], torch_prune, torchs()[1]) is not None
    assert isinstance(error_of(REFUSED[case], fx_prune, ours()[1]), fxprune.FxpruneError)


@pytest.mark.parametrize("case", [*SAME, *REFUSED])
def test_a_refusal_changes_nothing(case: str) -> None:
    program, at = ours()
    before = {k: v.clone() for k, v in program.state_dict().items()}
    if case == "more than is alive" or error_of({**SAME, **REFUSED}[case], fx_prune, at) is None:
        return
    assert list(program.state_dict()) == list(before)
    assert difference(dict(program.state_dict()), before) is None
    assert not program.masks
    assert program.graph.python_code("self").src == captured().graph.python_code("self").src
