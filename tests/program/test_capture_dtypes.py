"""Dtypes, devices and memory formats: of the source at capture, and of the Program afterwards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.tools.capture_helpers import check_forwards, check_same, masked, net, run, written

GENERATOR = torch.Generator().manual_seed(0)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, batch_first=True, dropout=0.2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0])


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Dropout(), nn.Linear(4, 2))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()
    )


Make = Callable[[], nn.Module]
MODELS: dict[str, tuple[Make, Tensor]] = {
    "dense": (dense, torch.randn(4, 3, generator=GENERATOR)),
    "conv": (convolutional, torch.randn(4, 3, 8, 8, generator=GENERATOR)),
    "lstm": (Recurrent, torch.randn(4, 5, 3, generator=GENERATOR)),
    "gru": (lambda: nn.GRU(3, 4, batch_first=True), torch.randn(4, 5, 3, generator=GENERATOR)),
}
each_model = pytest.mark.parametrize("name", MODELS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)


def channels_last(model: Any) -> Any:
    return model.to(memory_format=torch.channels_last)


def made(name: str) -> tuple[nn.Module, Tensor]:
    make, x = MODELS[name]
    torch.manual_seed(0)
    return make(), x


# Dtypes


@each_model
@each_dtype
def test_a_masked_program_moves_to_another_dtype(name: str, dtype: torch.dtype) -> None:
    model, x = made(name)
    program = masked(model, (x,))
    source = written(model, program.masks).to(dtype)
    moved = copy.deepcopy(program).to(dtype)
    assert {mask.dtype for mask in moved.masks.values()} == {dtype}
    assert moved.example()[0][0].dtype == dtype
    for ours in (fxprune.finalize(moved), moved):
        check_forwards(ours, copy.deepcopy(source), (x.to(dtype),), keys=ours is not moved)
    assert program.example()[0][0].dtype == x.dtype


@each_model
@each_dtype
def test_a_source_of_another_dtype(name: str, dtype: torch.dtype) -> None:
    model, x = made(name)
    model, x = model.to(dtype), x.to(dtype)
    program = fxprune.capture(model, (x,))
    pruned = masked(program)
    check_forwards(program, copy.deepcopy(model), (x,))
    assert {mask.dtype for mask in pruned.masks.values()} == {dtype}
    check_same(run(pruned.eval(), (x,)), run(written(model, pruned.masks).eval(), (x,)))


def test_a_program_moves_there_and_back() -> None:
    model, x = made("lstm")
    program = masked(model, (x,)).eval()
    before = program(x)
    check_same(program.double().float()(x), before)


def test_factories_of_forward_follow_device_and_default_dtype() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.l(x) + torch.ones(2, device=x.device) + torch.arange(2) + x.new_zeros(2)

    model, x = net(forward, l=nn.Linear(3, 2)), MODELS["dense"][1]
    program = fxprune.capture(model, (x,))
    check_same(program(x), model(x))
    check_same(program.double()(x.double()), model.double()(x.double()))
    assert program.to("meta")(x.double().to("meta")).is_meta


# Devices


@each_model
def test_a_masked_program_moves_to_another_device(name: str) -> None:
    """The meta device stands for an accelerator: tensors of two devices raise there as well."""
    model, x = made(name)
    program = masked(model, (x,)).to("meta")
    assert program.device.type == "meta"
    assert {mask.device.type for mask in program.masks.values()} == {"meta"}
    out = program(x.to("meta"))
    first = out if isinstance(out, Tensor) else out[0]
    assert first.is_meta
    assert first.shape[0] == 4
    assert program.example()[0][0].is_meta


@each_model
def test_a_source_without_storage(name: str) -> None:
    model, x = made(name)
    with torch.device("meta"):
        empty, _ = made(name)
    program = fxprune.capture(empty, (x.to("meta"),))
    assert list(program.state_dict()) == list(model.state_dict())
    program.to_empty(device="cpu").load_state_dict(model.state_dict())
    check_forwards(program, copy.deepcopy(model), (x,))


def test_an_example_on_another_device_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    with pytest.raises(fxprune.FxpruneError, match="device"):
        fxprune.capture(model, (torch.zeros(4, 3),))


def test_a_program_without_storage_is_not_ranked() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    program = fxprune.capture(model, (torch.zeros(4, 3, device="meta"),))
    with pytest.raises(fxprune.FxpruneError, match="meta"):
        masked(program)


# Memory formats


def test_channels_last_weights_and_inputs() -> None:
    model, x = made("conv")
    model, images = channels_last(model), channels_last(x)
    program = fxprune.capture(model, (images,))
    pruned = masked(program)
    source = written(model, pruned.masks)
    for ours, theirs in ((program, model), (pruned, source), (fxprune.finalize(pruned), source)):
        for given in (images, x):
            mine, other = ours.eval()(given), theirs.eval()(given)
            check_same(mine, other)
            assert mine.stride() == other.stride()
    wanted = model.get_parameter("0.weight").stride()
    for ours in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert ours.parameter("0.weight").stride() == wanted
    for zeros in ("keep", "clean"):
        final = fxprune.finalize(pruned, zeros=zeros)
        assert final.parameter("0.weight").stride() == wanted, zeros


def test_a_program_captured_contiguous_takes_channels_last() -> None:
    model, x = made("conv")
    program = fxprune.capture(model, (x,)).eval()
    model.eval()
    images = channels_last(x)  # for which a CPU may have another kernel, which rounds otherwise
    check_same(program(images), model(images))
    moved = channels_last(copy.deepcopy(program))
    check_same(moved(x), channels_last(copy.deepcopy(model))(x))


def test_inputs_that_are_not_contiguous() -> None:
    model = nn.Linear(3, 2)
    program = fxprune.capture(model, (torch.randn(4, 3),))
    x = torch.randn(3, 4).T
    check_same(program(x), model(x))
