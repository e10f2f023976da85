"""After a shrink: optimizers carried over, and weights loaded into the source's class."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.channels.after import apply_delta, shape_delta, transplant
from fxprune.compiler.shrinking import shrink
from fxprune.errors import FormatError, PassError, PassTypeError
from fxprune.program.program import Program
from tests.models import store
from tests.models.coupled_nets import IMAGE, NETS, Residual, captured, coupled

Parameters = Iterable[Any]
OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def steps(program: Program, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        inputs = [
            torch.randn(4, *spec.shape[1:], generator=draw, dtype=torch.float64)  # type: ignore[misc]
            for spec in program.inputs.inputs
        ]
        optimizer.zero_grad()
        program(*inputs).square().mean().backward()
        optimizer.step()


def assert_is_cut(small: Program, masked: Program) -> None:
    """Every weight of the shrunk program is the masked one's, at the channels that stayed."""
    whole = fxprune.finalize(masked)
    for name in small.aliases:
        expected = whole.parameter(name).detach()
        for found in (f for f in small.captured.shrinks[-1].maps if f.tensor == name):
            expected = expected.index_select(found.axis, torch.tensor(found.kept))
        # Gradients are summed over fewer addends, in another order; Adam divides by their roots.
        torch.testing.assert_close(small.parameter(name).detach(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["residual", "attention", "grouped"])
def test_training_goes_on_as_the_masked_program_would(kind: str, name: str):
    masked = fxprune.prune(captured(name), coupled())
    optimizer = OPTIMIZERS[kind](masked.parameters())
    steps(masked, optimizer, 3, seed=0)
    small = shrink(masked)
    moved = transplant(optimizer, small, before=masked)
    assert_is_cut(small, masked)
    steps(masked, optimizer, 3, seed=1)
    steps(small, moved, 3, seed=1)
    assert_is_cut(small, masked)


def test_state_matters():
    masked = fxprune.prune(captured("residual"), coupled())
    optimizer = OPTIMIZERS["momentum"](masked.parameters())
    steps(masked, optimizer, 3, seed=0)
    small = shrink(masked)
    steps(masked, optimizer, 1, seed=1)
    steps(small, OPTIMIZERS["momentum"](small.parameters()), 1, seed=1)
    with pytest.raises(AssertionError):
        assert_is_cut(small, masked)


def test_a_finalized_program_takes_over_from_the_masked_one():
    masked = fxprune.prune(captured("residual"), coupled())
    optimizer = OPTIMIZERS["adamw"](masked.parameters())
    steps(masked, optimizer, 2, seed=0)
    small = shrink(fxprune.finalize(masked))
    moved = transplant(optimizer, small, before=masked)
    steps(masked, optimizer, 2, seed=1)
    steps(small, moved, 2, seed=1)
    assert_is_cut(small, masked)


def test_a_program_shrunk_in_place_needs_no_before():
    masked = fxprune.prune(captured("residual"), coupled())
    twin = copy.deepcopy(masked)
    optimizer = OPTIMIZERS["adam"](masked.parameters())
    steps(masked, optimizer, 2, seed=0)
    other = OPTIMIZERS["adam"](twin.parameters())
    steps(twin, other, 2, seed=0)
    assert shrink(masked, inplace=True) is masked
    moved = transplant(optimizer, masked)
    steps(masked, moved, 2, seed=1)
    steps(twin, other, 2, seed=1)
    assert_is_cut(masked, twin)


def test_groups_keep_their_settings_and_order():
    masked = fxprune.prune(captured("residual"), coupled())
    named = dict(masked.named_parameters())
    groups = [
        {"params": [named["fc.bias"]], "lr": 1.0},
        {"params": [p for n, p in named.items() if n != "fc.bias"], "weight_decay": 0.5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    small = shrink(masked)
    moved = transplant(optimizer, small, before=masked)
    assert type(moved) is torch.optim.AdamW
    assert [group["lr"] for group in moved.param_groups] == [1.0, 0.1]
    assert [group["weight_decay"] for group in moved.param_groups] == [0.01, 0.5]
    assert moved.param_groups[0]["params"][0] is small.parameter("fc.bias")
    assert sum(len(group["params"]) for group in moved.param_groups) == len(named)
    assert optimizer.param_groups[0]["params"][0] is named["fc.bias"]


def test_names_of_parameters_stay_beside_them():
    masked = fxprune.prune(captured("residual"), coupled())
    optimizer = torch.optim.SGD(masked.named_parameters(), lr=0.1)
    moved = transplant(optimizer, shrink(masked), before=masked)
    assert moved.param_groups[0]["param_names"] == optimizer.param_groups[0]["param_names"]


def with_constant() -> nn.Sequential:
    """A layer whose second half is constant, read by one without a bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    with torch.no_grad():
        model[0].get_parameter("weight")[3:] = 0
        model[0].get_parameter("bias")[3:] = 2
    return model


def test_a_bias_that_was_added_joins_its_layers_group_without_state():
    model = with_constant()
    program = store.capture(model, (torch.randn(4, 4, dtype=torch.float64),))
    first, last = program.parameter("0.weight"), program.parameter("2.weight")
    bias = program.parameter("0.bias")
    optimizer = torch.optim.SGD(
        [{"params": [first, bias], "lr": 0.5}, {"params": [last], "lr": 0.1}], lr=1, momentum=0.9
    )
    steps(program, optimizer, 1, seed=0)
    with torch.no_grad():
        first[3:], bias[3:] = 0, 2
    small = shrink(program)
    assert small.captured.shrinks[-1].added == ("2.bias",)
    moved = transplant(optimizer, small, before=program)
    added = small.parameter("2.bias")
    assert moved.param_groups[1]["params"][-1] is added
    assert added not in moved.state
    steps(small, moved, 2, seed=1)


def test_the_optimizer_may_hold_the_source_models_parameters():
    model = with_constant()
    weight, bias = model[0].get_parameter("weight"), model[0].get_parameter("bias")
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        weight[3:], bias[3:] = 0, 2
    small = shrink(store.capture(model, (torch.randn(4, 4, dtype=torch.float64),)))
    moved = transplant(optimizer, small, before=model)
    state = moved.state[small.parameter("0.weight")]
    whole = optimizer.state[weight]
    assert torch.equal(state["exp_avg"], whole["exp_avg"][:3])
    assert torch.equal(state["step"], whole["step"])
    assert state["step"] is not whole["step"]


def test_what_cannot_be_carried_over_is_refused_with_its_name():
    masked = fxprune.prune(captured("residual"), coupled())
    small = shrink(masked)
    known = OPTIMIZERS["adam"](masked.parameters())
    with pytest.raises(PassError, match="was not shrunk"):
        transplant(known, masked)
    with pytest.raises(PassError, match=r"not one of the model .* give before="):
        transplant(known, small)
    with pytest.raises(PassTypeError, match="takes an optimizer, not dict"):
        transplant({}, small)  # type: ignore[arg-type]
    with pytest.raises(PassTypeError, match="takes the shrunk Program, not Linear"):
        transplant(known, nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(PassError, match="LBFGS keeps tensors beside its state"):
        transplant(torch.optim.LBFGS(masked.parameters()), small, before=masked)
    factored = torch.optim.Adafactor(masked.parameters())
    steps(masked, factored, 1, seed=0)
    with pytest.raises(PassError, match=r"the state 'row_var' of .* is no tensor of the param"):
        transplant(factored, small, before=masked)


def test_states_of_other_optimizers_are_cut_where_they_have_the_parameters_shape():
    class Signs(torch.optim.Optimizer):
        def __init__(self, parameters: Parameters, rate: float) -> None:
            super().__init__(parameters, {"rate": rate})

        def step(self, closure: Any = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
            for parameter in self.param_groups[0]["params"]:
                state = self.state[parameter]
                state["signs"], state["note"] = parameter.grad.sign(), "seen"
            return 0.0

    masked = fxprune.prune(captured("residual"), coupled())
    optimizer = Signs(masked.parameters(), rate=3.0)
    steps(masked, optimizer, 1, seed=0)
    small = shrink(masked)
    moved = transplant(optimizer, small, before=masked)
    state = moved.state[small.parameter("stem.weight")]
    kept = next(m for m in small.captured.shrinks[0].maps if m.tensor == "stem.weight").kept
    whole = optimizer.state[masked.parameter("stem.weight")]["signs"]
    assert torch.equal(state["signs"], whole[list(kept)])
    assert state["note"] == "seen"


# Shape deltas


@pytest.mark.parametrize("name", ["residual", "depthwise", "dense", "grouped", "lenet"])
def test_shrunk_weights_load_into_the_sources_class(name: str):
    small = shrink(fxprune.finalize(fxprune.prune(captured(name), coupled())))
    delta = json.loads(json.dumps(shape_delta(small), allow_nan=False))
    build, shape = NETS[name]
    model = apply_delta(build().double(), delta).eval()
    model.load_state_dict(small.state_dict(), strict=True)
    x = torch.randn(3, *shape, dtype=torch.float64)
    assert torch.equal(model(x), small.eval()(x))


def test_deltas_of_several_shrinks_are_one():
    once = shrink(fxprune.finalize(fxprune.prune(captured("residual"), coupled())))
    twice = shrink(fxprune.finalize(fxprune.prune(once, coupled())))
    delta = shape_delta(twice)
    assert delta["cut"]["stem.weight"]["before"] == [8, 3, 3, 3]
    assert delta["cut"]["stem.weight"]["after"] == [2, 3, 3, 3]
    model = apply_delta(Residual().double(), delta).eval()
    assert model.stem.out_channels == model.conv1.in_channels == 2  # type: ignore[union-attr]
    model.load_state_dict(twice.state_dict(), strict=True)
    x = torch.randn(2, *IMAGE, dtype=torch.float64)
    assert torch.equal(model(x), twice.eval()(x))


def test_the_values_that_stay_are_those_of_the_instance():
    masked = fxprune.prune(captured("residual"), coupled())
    delta = shape_delta(shrink(fxprune.finalize(masked)))
    model = Residual().double()
    whole: Tensor = model.stem.weight.detach().clone()
    apply_delta(model, delta)
    assert torch.equal(model.stem.weight, whole[delta["cut"]["stem.weight"]["kept"]["0"]])


def test_biases_that_were_added_load():
    model = with_constant()
    small = shrink(store.capture(model, (torch.randn(4, 4, dtype=torch.float64),)))
    delta = shape_delta(small)
    assert delta["added"] == {"2.bias": [3]}
    made = apply_delta(copy.deepcopy(model), delta)
    made.load_state_dict(small.state_dict(), strict=True)
    x = torch.randn(2, 4, dtype=torch.float64)
    # The constant was added to the product; absorbed, it is summed in another order.
    torch.testing.assert_close(made(x), model(x), rtol=0, atol=1e-12)


def test_tied_parameters_stay_one():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.b(self.a(self.first(x)).tanh()).tanh())

    torch.manual_seed(0)
    program = store.capture(Tied().double(), (torch.randn(4, 4, dtype=torch.float64),))
    small = shrink(fxprune.finalize(fxprune.prune(program, coupled())))
    model = apply_delta(Tied().double(), shape_delta(small))
    assert model.a.weight is model.b.weight  # type: ignore[union-attr]
    assert model.a.weight.shape == (3, 3)  # type: ignore[union-attr]


def test_deltas_that_do_not_fit_leave_the_model_as_it_was():
    delta = shape_delta(shrink(fxprune.finalize(fxprune.prune(captured("residual"), coupled()))))
    with pytest.raises(FormatError, match=r"has shape \(10, 3, 3, 3\), and the source's was"):
        apply_delta(Residual(10), delta)
    model = nn.Linear(3, 2)
    with pytest.raises(FormatError, match=r"the model has no 'stem'"):
        apply_delta(model, delta)
    with pytest.raises(FormatError, match=r"cut: .*give what shape_delta returned"):
        apply_delta(model, {"version": 1, "cut": 3, "added": {}, "removed": [], "settings": {}})
    with pytest.raises(FormatError, match="version 2 of shape deltas is not known"):
        apply_delta(model, {**delta, "version": 2})
    assert model.weight.shape == (2, 3)
    with pytest.raises(PassError, match="has masks; finalize it"):
        shape_delta(fxprune.prune(captured("residual"), coupled()))
