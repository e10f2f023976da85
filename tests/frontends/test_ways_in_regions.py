"""Regions of autocast, grad modes and checkpoints: selectable inside, equal bits and gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.program import ops
from tests.tools.capture_helpers import check_forwards, check_same, masked, net, run

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
Forward = Callable[..., Any]


def cast(**options: Any) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def autocast(self: Any, x: Tensor) -> Tensor:
    with cast():
        x = torch.relu(self.a(x))
    return self.c(x.float())


def autocast_shared(self: Any, x: Tensor) -> Tensor:
    """One weight twice in a region, which casts it once, and outside of it."""
    with cast():
        y = self.a(self.a(x))
    return self.c(y.float() + self.a(x))


def autocast_off(self: Any, x: Tensor) -> Tensor:
    with cast():
        y = self.a(x)
        with torch.autocast("cpu", enabled=False):
            z = self.b(y.float())
        y = self.c(y)
    return y.float().sum(1, keepdim=True) + z


def no_grad_inside(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    with cast():
        y = self.a(x)
        with torch.no_grad():
            z = self.b(y)
        y = self.c(y)
    return y.float(), z.float()


def no_grad_outside(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), cast():
        y = self.a(x)
    return self.c(self.b(x) + y.float())


def grad_modes(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.a(x)
        with torch.enable_grad():
            y = self.b(y)
        y = y * 2
    with torch.set_grad_enabled(False):
        z = self.a(y)
    return self.c(self.b(x) + z) + y.sum()


def through_checkpoint(reentrant: bool) -> Forward:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x)
        x = checkpoint(lambda y: torch.tanh(self.b(y)), x, use_reentrant=reentrant)
        return self.c(x)

    return forward


def checkpoint_and_cast(self: Any, x: Tensor) -> Tensor:
    with cast():
        x = checkpoint(self.b, self.a(x), use_reentrant=False)
    return self.c(x.float())


FORWARDS: dict[str, Forward] = {
    "autocast": autocast,
    "autocast, shared": autocast_shared,
    "autocast, off inside": autocast_off,
    "no_grad inside of autocast": no_grad_inside,
    "autocast inside of no_grad": no_grad_outside,
    "grad modes": grad_modes,
    "checkpoint": through_checkpoint(False),
    "checkpoint, reentrant": through_checkpoint(True),
    "checkpoint and autocast": checkpoint_and_cast,
}
each_forward = pytest.mark.parametrize("name", FORWARDS)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    parts = {"a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "c": nn.Linear(6, 6)}
    return net(FORWARDS[name], **parts)


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    model.zero_grad()
    outputs = run(model, (X,))
    for output in outputs if isinstance(outputs, tuple) else (outputs,):
        if output.requires_grad:
            output.square().sum().backward(retain_graph=True)
    return {name.removesuffix("_orig"): p.grad for name, p in model.named_parameters()}


def hooked(model: nn.Module, masks: Any) -> nn.Module:
    """Let torch mask a copy of the source by its hooks."""
    model = copy.deepcopy(model)
    for name, mask in masks.items():
        torch_prune.custom_from_mask(model.get_submodule(name.rpartition(".")[0]), "weight", mask)
    return model


# A reentrant checkpoint warns that without gradients there are none.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@each_forward
def test_a_region_has_the_source_s_bits_and_gradients(name: str) -> None:
    model = made(name)
    program = fxprune.capture(model, (X,))
    for ours in (program, copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        check_forwards(ours, copy.deepcopy(model), (X,))
        check_same(gradients(ours), gradients(copy.deepcopy(model)))
    with torch.no_grad():
        check_same(program(X), model(X))
    with torch.inference_mode():
        check_same(program(X), model(X))


@each_forward
def test_weights_inside_a_region_are_pruned_as_torch_does(name: str) -> None:
    model = made(name)
    program = masked(model, (X,), op="linear", role="weight")
    used = {"a.weight", "b.weight", "c.weight"} - (
        {"b.weight"} if "self.b" not in code(name) else set()
    )
    assert set(program.masks) == used
    oracle = hooked(model, program.masks)
    check_same(program(X), oracle(X))
    theirs = gradients(oracle)
    for parameter, gradient in gradients(program).items():
        expected = theirs[parameter]
        # A weight read twice has one product here and two there: 0.0 + -0.0 is 0.0.
        assert (gradient is None) == (expected is None)
        assert gradient is None or expected is None or torch.equal(gradient, expected), parameter
    final = fxprune.finalize(program)
    check_same(final(X), oracle(X))
    copy.deepcopy(model).load_state_dict(final.state_dict(), strict=True)


def code(name: str) -> str:
    return "self.b" if "b" in FORWARDS[name].__code__.co_names or "checkpoint" in name else ""


@each_forward
def test_a_region_is_flat_in_the_graph_and_compiles_and_exports(name: str) -> None:
    model = made(name)
    program = masked(model, (X,), op="linear", role="weight").eval()
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    names = {ops.canonical_name(node.target) for node in calls}
    assert not names & {"wrap_with_autocast", "wrap_with_set_grad_enabled"}
    expected = program(X)
    torch._dynamo.reset()
    check_same(torch.compile(program, fullgraph=True, backend="eager")(X), expected)
    exported = torch.export.export(program, (X,), strict=False).module()
    check_same(exported(X), expected)


@pytest.mark.parametrize("ambient", [True, False])
def test_autocast_is_as_before_after_a_run_and_after_an_error(ambient: bool) -> None:
    program = fxprune.capture(made("autocast, off inside"), (X,))
    with torch.autocast("cpu", dtype=torch.float16, enabled=ambient):
        state = cast_state()
        program(X)
        assert cast_state() == state
        for wrong in (X.to(torch.complex64), X.double()[:, :5]):
            with pytest.raises((RuntimeError, ValueError)):
                program._forward_both(wrong)
            assert cast_state() == state


def cast_state() -> tuple[Any, ...]:
    torch.autocast_increment_nesting()
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.autocast_decrement_nesting(),
    )


def test_an_inference_mode_inside_forward() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = self.a(x)
        return self.c(y.clone())

    torch.manual_seed(0)
    model = net(forward, a=nn.Linear(6, 6), c=nn.Linear(6, 6))
    program = fxprune.capture(model, (X,))
    with torch.no_grad():
        check_same(program(X), model(X))
    assert list(masked(program, op="linear", param="weight").masks) == ["a.weight", "c.weight"]


@pytest.mark.parametrize("decorate", [torch.no_grad(), torch.inference_mode(), cast()])
def test_a_forward_that_is_decorated(decorate: Any) -> None:
    torch.manual_seed(0)
    model = net(decorate(lambda self, x: self.a(x)), a=nn.Linear(6, 6))
    program = fxprune.capture(model, (X,))
    check_same(program(X), model(X))
    assert program(X).requires_grad is model(X).requires_grad
    assert list(masked(program, op="linear", role="weight").masks) == ["a.weight"]
