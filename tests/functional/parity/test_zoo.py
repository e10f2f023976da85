"""Every method on every named model: fxprune is torch, bit for bit."""

from __future__ import annotations

import copy
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fxprune
from fxprune.testing.calls import Call
from fxprune.testing.drawing import pruning_sequences
from fxprune.testing.oracle import Oracle
from fxprune.testing.parity import assert_parity
from tests.models import store
from tests.models.zoo import QUICK, ZOO
from tests.tools.profiles import examples, thorough_but


def every_method(oracle: Oracle) -> tuple[Call, ...]:
    """One method after another over the parameters, then some on all, then some again."""
    names = list(dict.fromkeys(oracle.names.values()))
    flat = [name for name in names if oracle.hooked.get_parameter(name).ndim == 1]
    matrices = [name for name in names if name not in flat]
    calls: list[Call] = [Call("l1_unstructured", (name,), amount=0.3) for name in flat]
    kinds = ["ln_structured", "random_structured", "l1_unstructured", "random_unstructured"]
    for i, name in enumerate(matrices):
        calls.append(Call(kinds[i % len(kinds)], (name,), amount=0.4, dim=i % 2, seed=i))
    first, last = matrices[0], matrices[-1]
    return (
        *calls,
        Call("global_unstructured", tuple(names), amount=0.2),
        Call("ln_structured", (last,), amount=1, n=1, dim=-1),
        Call("remove", (first,)),
        Call("custom_from_mask", (first,), keep=0.8),
        Call("own_method", (last,), method="every_other"),
        Call(
            "global_unstructured",
            tuple(dict.fromkeys((first, last))),
            amount=3,
            method="random",
            seed=1,
        ),
    )


@cache
def source(name: str) -> fxprune.Program:
    return store.capture(*ZOO[name]())


def captured(name: str) -> fxprune.Program:
    return copy.deepcopy(source(name))


@pytest.mark.parametrize("name", thorough_but(QUICK[::2], ZOO))
def test_every_method_on_a_named_model_is_torchs(name: str) -> None:
    model, args, kwargs = ZOO[name]()
    assert_parity(model, every_method(Oracle(model)), args, kwargs, program=source(name))


@examples(10, 100)
@given(st.data())
def test_any_calls_on_a_named_model_are_torchs(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(ZOO)))
    model, args, kwargs = ZOO[name]()
    drawn = data.draw(pruning_sequences(dict(model.named_parameters())))
    assert_parity(model, drawn, args, kwargs, program=source(name))
