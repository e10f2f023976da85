"""What the tests of capture share: small modules made of a function, seeded runs, dense twins."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.program.program import Program
from fxprune.testing.comparing import difference
from fxprune.testing.oracle import Oracle
from tests.models import store
from tests.models.zoo import ZOO, Case

Args = tuple[Any, ...]
BATCHES = (4, 1, 7)


@lru_cache
def captured(name: str) -> tuple[Case, Program]:
    """Capture a named model once for all tests, which takes most of the time; copy, do not edit."""
    case = ZOO[name]()
    return case, store.capture(*case)


def program_of(name: str) -> Program:
    """Return a captured copy of a named model, to edit."""
    return copy.deepcopy(captured(name)[1])


def net(forward: Callable[..., Any], **attributes: Any) -> nn.Module:
    """Build a module with these attributes, whose forward is `forward(self, ...)`."""
    made = type("Net", (nn.Module,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def masked(model: nn.Module, args: Args = (), *, amount: float = 0.4, **select: Any) -> Program:
    """Mask a Program, or a module with its example, by magnitude over all matrices."""
    rule = {
        "select": select or {"ndim": [2, 3, 4, 5]},
        "method": "l1_unstructured",
        "scope": "global",
        "amount": amount,
    }
    return fxprune.prune(model, {"rule": [rule]}, args=args)


def written(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Copy a source and write `weight * mask` into its weights."""
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            dense.get_parameter(name).mul_(mask)
    return dense


def oracle_of(model: nn.Module, masks: Mapping[str, Tensor]) -> Oracle:
    """Let torch mask a copy of a source with given masks; its forward is what they mean."""
    oracle = Oracle(model)
    for name, mask in masks.items():
        torch_prune.custom_from_mask(*oracle.owner(name), mask)
    return oracle


def saved(program: Program) -> Program:
    """Write a Program with torch.save and read it back."""
    file = io.BytesIO()
    torch.save(program, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy a state dict."""
    return {key: value.clone() for key, value in model.state_dict().items()}


def run(model: Any, args: Args, kwargs: Mapping[str, Any] | None = None, *, seed: int = 1) -> Any:
    """Run a model under a seed."""
    torch.manual_seed(seed)
    return model(*args, **(kwargs or {}))


def redrawn(args: Args, batch: int) -> Args:
    """Draw floating inputs of another batch; other inputs keep their rows, repeated."""

    def draw(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return torch.randn(batch, *x.shape[1:]).to(x.dtype)
        return x[torch.arange(batch) % len(x)]

    return tuple(map(draw, args))


def check_same(ours: Any, theirs: Any, where: object = "") -> None:
    """Hold two nests of tensors to each other, bit for bit."""
    found = difference(ours, theirs)
    assert found is None, f"{where}: {found}"


def check_forwards(program: nn.Module, source: nn.Module, args: Args, *, keys: bool = True) -> None:
    """Hold a Program to its source in both modes at three batches, then keys, order and bits.

    Args:
        program: its buffers change.
        source: a private copy; its buffers change.
        args: tensors with the batch as dimension 0.
        keys: whether the state dicts are compared; those of a masked Program differ.
    """
    for train in (True, False):
        program.train(train)
        source.train(train)
        for batch in BATCHES:
            given = redrawn(args, batch)
            check_same(run(program, given), run(source, given), (train, batch))
    if not keys:
        return
    assert list(program.state_dict()) == list(source.state_dict())
    check_same(dict(program.state_dict()), dict(source.state_dict()), "state dict")
