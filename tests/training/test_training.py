"""Training while masked: optimizers, optimizers built before, and distributed data parallel."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fxprune
from fxprune.testing.oracle import loss_of
from tests.models import store
from tests.models.zoo import ZOO
from tests.tools.capture_helpers import captured, check_same, masked, oracle_of, state_of

Optimizers = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizers] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}
STEPS = 3
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def train(optimizer: torch.optim.Optimizer, forward: Callable[[], Any]) -> None:
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss_of(forward()).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "name", ["residual_cnn", "attention", "lstm", "tied_embedding", "aux_head"]
)
@each_optimizer
def test_three_steps_are_those_of_the_masks(name: str, optimizer: str) -> None:
    (model, args, kwargs), program = captured(name)
    program = masked(program).train()
    oracle = oracle_of(model, program.masks)
    before = program.value(next(iter(program.masks)))
    train(OPTIMIZERS[optimizer](program.parameters()), lambda: program(*args, **kwargs))
    train(
        OPTIMIZERS[optimizer](oracle.hooked.parameters()),
        lambda: oracle.forward(args, kwargs, train=True),
    )
    values = oracle.weights()
    for parameter in oracle.names:
        check_same(program.value(parameter), values[parameter].detach(), parameter)
    if oracle.keys_agree:
        check_same(state_of(program), dict(oracle.state_dict()))
    for parameter, mask in program.masks.items():
        assert not program.value(parameter)[mask == 0].any()
    assert not torch.equal(before, program.value(next(iter(program.masks))))


@each_optimizer
def test_finalized_after_training_keeps_the_function_and_then_regrows(optimizer: str) -> None:
    (_, args, _), program = captured("residual_cnn")
    program = masked(program).train()
    train(OPTIMIZERS[optimizer](program.parameters()), lambda: program(*args))
    final = fxprune.finalize(program)
    check_same(final.eval()(*args), program.eval()(*args))
    zeros = int((final.parameter("fc.weight") == 0).sum())
    train(OPTIMIZERS[optimizer](final.parameters()), lambda: final.train()(*args))
    assert int((final.parameter("fc.weight") == 0).sum()) < zeros


@each_optimizer
def test_an_optimizer_that_was_built_before_an_edit_in_place_goes_on(optimizer: str) -> None:
    """Dense steps, a prune, masked steps, a finalize: always the same Parameter objects."""
    model, args, _ = ZOO["residual_cnn"]()
    program = store.capture(model, args).train()
    objects = {id(p) for p in program.parameters()}
    updates = OPTIMIZERS[optimizer](program.parameters())
    train(updates, lambda: program(*args))
    recipe = {"rule": [{"select": {"ndim": [2, 4]}, "method": "l1_unstructured", "amount": 0.5}]}
    assert fxprune.prune(program, recipe, inplace=True) is program
    assert {id(p) for p in program.parameters()} == objects

    twin = copy.deepcopy(program)
    # The optimizer has the parameters in the order of then: masking moves them, as torch does.
    named = {id(p): name for name, p in program.named_parameters()}
    order = [named[id(p)] for p in updates.param_groups[0]["params"]]
    other = OPTIMIZERS[optimizer]([twin.get_parameter(name) for name in order])
    other.load_state_dict(copy.deepcopy(updates.state_dict()))

    train(updates, lambda: program(*args))
    train(other, lambda: twin(*args))
    check_same(state_of(program), state_of(twin))

    fxprune.finalize(program, inplace=True)
    assert {id(p) for p in program.parameters()} == objects
    assert list(program.state_dict()) == list(model.state_dict())
    before = state_of(program)
    train(updates, lambda: program(*args))
    assert not torch.equal(before["fc.weight"], program.state_dict()["fc.weight"])


@pytest.mark.smoke
def test_a_gradient_that_was_there_before_an_edit_in_place_stays() -> None:
    model, args, _ = ZOO["lenet"]()
    program = store.capture(model, args)
    program(*args).square().sum().backward()
    gradient = program.parameter("fc1.weight").grad
    assert gradient is not None
    recipe = {"rule": [{"select": "fc1.weight", "method": "l1_unstructured", "amount": 0.5}]}
    fxprune.prune(program, recipe, inplace=True)
    assert program.parameter("fc1.weight").grad is gradient


def test_training_through_a_compiled_program() -> None:
    (_, args, _), program = captured("residual_cnn")
    program = masked(program).train()
    twin = copy.deepcopy(program)
    torch._dynamo.reset()
    compiled = torch.compile(program, fullgraph=True, backend="eager")
    train(OPTIMIZERS["sgd"](program.parameters()), lambda: compiled(*args))
    train(OPTIMIZERS["sgd"](twin.parameters()), lambda: twin(*args))
    check_same(state_of(program), state_of(twin))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, met through a file: no port is opened."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", ["residual_cnn", "attention", "tied_embedding"])
def test_distributed_data_parallel_trains_the_same(name: str) -> None:
    (_, args, kwargs), program = captured(name)
    program = masked(program).train()
    twin = copy.deepcopy(program)
    parallel = DistributedDataParallel(program)
    train(OPTIMIZERS["sgd"](parallel.parameters()), lambda: parallel(*args, **kwargs))
    train(OPTIMIZERS["sgd"](twin.parameters()), lambda: twin(*args, **kwargs))
    check_same(state_of(program), state_of(twin))
    check_same(
        fxprune.finalize(program).eval()(*args, **kwargs),
        fxprune.finalize(twin).eval()(*args, **kwargs),
    )
