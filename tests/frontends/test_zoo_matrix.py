"""Every named model, in every form a Program takes: equal to its source, bit for bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.program.program import Program
from fxprune.testing.oracle import Oracle, loss_of, step_by_step
from tests.models.zoo import QUICK, ZOO, Case
from tests.tools.batches import with_batch
from tests.tools.capture_helpers import check_same, masked, oracle_of, run, saved, state_of, written
from tests.tools.profiles import thorough_but

BATCHES = (4, 1, 7)
PLAIN: dict[str, Callable[[Program], Program]] = {
    "captured": copy.deepcopy,
    "deepcopied twice": lambda program: copy.deepcopy(copy.deepcopy(program)),
    "pickled": lambda program: pickle.loads(pickle.dumps(program)),
    "saved": saved,
}
MASKED: dict[str, Callable[[Program], Program]] = {
    **PLAIN,
    "captured": masked,
    "deepcopied": lambda program: copy.deepcopy(masked(program)),
    "pickled": lambda program: pickle.loads(pickle.dumps(masked(program))),
    "saved": lambda program: saved(masked(program)),
    "finalized": lambda program: fxprune.finalize(masked(program)),
    "finalized and pickled": lambda program: pickle.loads(
        pickle.dumps(fxprune.finalize(masked(program)))
    ),
}
del MASKED["deepcopied twice"]

each_model = pytest.mark.parametrize("name", thorough_but(QUICK, ZOO))
each_mode = pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])


@lru_cache
def captured(name: str) -> tuple[Case, Program]:
    """Capture a model once, not from the store: copy, do not edit."""
    case = ZOO[name]()
    return case, fxprune.capture(*case)


def check_forwards(program: nn.Module, source: nn.Module, args: Any, kwargs: Any) -> None:
    """Both modes at three batches, then all buffers: batch statistics count each forward."""
    for train in (True, False):
        program.train(train)
        source.train(train)
        for batch in BATCHES:
            given = with_batch(args, kwargs, batch)
            check_same(run(program, *given), run(source, *given), (train, batch))
    masks = {key for key, _ in program.named_buffers() if key.endswith("_mask")}
    ours = {key: b for key, b in program.named_buffers() if key not in masks}
    check_same(
        {key: ours[key] for key, _ in source.named_buffers()}, dict(source.named_buffers()), "after"
    )


@each_model
@pytest.mark.parametrize("form", PLAIN)
def test_a_dense_program_is_its_source(name: str, form: str) -> None:
    (model, args, kwargs), program = captured(name)
    ours, source = PLAIN[form](program), copy.deepcopy(model)
    assert list(ours.state_dict()) == list(source.state_dict())
    check_same(dict(ours.state_dict()), dict(source.state_dict()))
    check_forwards(ours, source, args, kwargs)
    check_same(dict(ours.state_dict()), dict(source.state_dict()))


@each_model
@pytest.mark.parametrize("form", MASKED)
def test_a_masked_program_is_the_source_with_masked_weights(name: str, form: str) -> None:
    (model, args, kwargs), program = captured(name)
    ours = MASKED[form](program)
    source = written(model, masked(program).masks)
    if "finalized" in form:
        assert list(ours.state_dict()) == list(source.state_dict())
        check_same(dict(ours.state_dict()), dict(source.state_dict()))
    check_forwards(ours, source, args, kwargs)


@each_model
def test_a_captured_program_trains_as_its_source(name: str) -> None:
    (model, args, kwargs), program = captured(name)
    ours, source = copy.deepcopy(program).train(), copy.deepcopy(model).train()
    steps = [
        step_by_step(m, lambda m=m: m(*args, **kwargs), loss=loss_of, steps=2, lr=0.1, seed=3)
        for m in (ours, source)
    ]
    check_same(*steps, where="gradients")
    check_same(state_of(ours), state_of(source), "state dict")


@each_model
def test_a_masked_program_has_the_gradients_of_its_masks(name: str) -> None:
    (model, args, kwargs), program = captured(name)
    ours = masked(program).train()
    oracle: Oracle = oracle_of(model, ours.masks)
    mine = step_by_step(ours, lambda: ours(*args, **kwargs), loss=loss_of, steps=2, lr=0.1, seed=3)
    check_same(mine, oracle.train(args, kwargs, steps=2, seed=3), "gradients")
    if oracle.keys_agree:
        assert list(ours.state_dict()) == list(oracle.state_dict())
        check_same(state_of(ours), dict(oracle.state_dict()), "state dict")


@each_model
def test_a_masked_program_compiles_whole_and_follows_the_mode(name: str) -> None:
    (model, args, kwargs), program = captured(name)
    ours = masked(program)
    source = written(model, ours.masks)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    for train in (True, False, True):
        ours.train(train)
        source.train(train)
        check_same(run(compiled, args, kwargs), run(source, args, kwargs), train)


@each_model
@each_mode
def test_a_masked_program_exports_with_a_dynamic_batch(name: str, train: bool) -> None:
    (model, args, kwargs), program = captured(name)
    ours = masked(program).train(train)
    source = written(model, ours.masks).train(train)
    dims = pytree.tree_map(lambda _: {0: torch.export.Dim.AUTO}, (args, kwargs))
    shapes = {**dict(zip(ours.inputs.names, dims[0], strict=True)), **dims[1]}
    exported = torch.export.export(ours, args, kwargs, dynamic_shapes=shapes, strict=False)
    for batch in (4, 7):
        given = with_batch(args, kwargs, batch)
        outputs = [pytree.tree_leaves(run(m, *given)) for m in (exported.module(), source)]
        check_same(*outputs, where=batch)
    named = {key for key, _ in ours.named_parameters(remove_duplicate=False)}
    assert set(exported.graph_signature.parameters) <= named
