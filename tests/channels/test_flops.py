"""Counted operations agree with torch's counter where that is right, and with sums by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.channels.cost import Costs, costs_of, footprint_of, latency_of, size_at
from fxprune.compiler.shrinking import shrink
from fxprune.program.program import Program
from tests.bench.models_vision import mobilenet_v2, resnet18
from tests.models import store
from tests.models.coupled_nets import NETS, captured
from tests.tools.profiles import examples, thorough_but

NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self, *args)


def cost(model: nn.Module, *inputs: Tensor, batch: int = 1, **more: Any) -> Costs:
    return costs_of(store.capture(model, inputs, **more), batch=batch)


def counted_by_torch(program: Program, *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        program.train()(*inputs)  # in eval mode attention takes a kernel that is not counted
    return counter.get_total_flops()


@pytest.mark.parametrize("build", thorough_but([resnet18], [resnet18, mobilenet_v2]))
def test_whole_models_agree_with_torch(build: Callable[[], nn.Module]):
    program = store.capture(build(), (torch.randn(2, 3, 64, 64),)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        program(torch.randn(3, 3, 64, 64))
    found = costs_of(program, batch=3)
    assert found.flops - found.of(*NORMS) == counter.get_total_flops()
    assert found.unknown == ()


# torch's counter leaves out attention where the CPU has a kernel for it: see below, by hand.
@pytest.mark.parametrize("name", sorted(NETS.keys() - {"attention"}))
def test_small_nets_agree_with_torch(name: str):
    program = captured(name)
    _, shape = NETS[name]
    found = costs_of(program, batch=3)
    expected = counted_by_torch(program, torch.randn(3, *shape, dtype=torch.float64))
    assert found.flops - found.of(*NORMS) == expected


@examples(10, 20)
@given(
    rank=st.integers(1, 3),
    groups=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    transposed=st.booleans(),
)
def test_convolutions_agree_with_torch(
    rank: int, groups: int, sizes: tuple[int, int], kernel: int, stride: int, transposed: bool
):
    name = f"Conv{'Transpose' if transposed else ''}{rank}d"
    layer = getattr(nn, name)(
        sizes[0] * groups, sizes[1] * groups, kernel, stride=stride, groups=groups
    )
    x = torch.randn(2, sizes[0] * groups, *([5] * rank))
    program = store.capture(layer, (x,))
    assert costs_of(program, batch=2).flops == counted_by_torch(program, x)


def test_products_are_counted_by_hand():
    a, b = torch.randn(4, 3, 5), torch.randn(4, 5, 7)
    assert cost(Of(lambda _, a, b: a @ b), a, b, batch=4).flops == 2 * 4 * 3 * 5 * 7
    assert cost(Of(lambda _, a, b: torch.bmm(a, b)), a, b, batch=4).flops == 2 * 4 * 3 * 5 * 7
    einsum = Of(lambda _, a, b: torch.einsum("bij,bjk->bki", a, b))
    assert cost(einsum, a, b, batch=4).flops == 2 * 4 * 3 * 5 * 7
    linear = Of(lambda m, x: m.fc(x), fc=nn.Linear(5, 2))
    assert cost(linear, a, batch=4).flops == 2 * 4 * 3 * 5 * 2
    pair = nn.Bilinear(3, 4, 2)
    assert cost(pair, torch.randn(2, 3), torch.randn(2, 4), batch=2).flops == 2 * 2 * 2 * (12 + 3)


def test_attention_is_counted_by_hand():
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 6)
    model = Of(lambda _, q, k, v: F.scaled_dot_product_attention(q, k, v))
    assert cost(model, q, k, v, batch=2).flops == 2 * 2 * 4 * 5 * 7 * (8 + 6)


@pytest.mark.parametrize(
    ("layer", "gates", "more"),
    [
        (nn.LSTM(5, 6, batch_first=True), 4, 0),
        (nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True), 4, 0),
        (nn.LSTM(5, 6, proj_size=3, batch_first=True), 4, 6 * 3),
        (nn.GRU(5, 6, batch_first=True), 3, 0),
        (nn.RNN(5, 6, batch_first=True, bias=False), 1, 0),
    ],
)
def test_recurrent_layers_are_counted_by_hand(layer: Any, gates: int, more: int):
    steps, batch = 9, 3
    hidden = layer.proj_size or layer.hidden_size
    directions = 2 if layer.bidirectional else 1
    each, inputs = 0, layer.input_size
    for _ in range(layer.num_layers):
        each += directions * (gates * layer.hidden_size * (inputs + hidden) + more)
        inputs = directions * hidden
    model = Of(lambda m, x: m.layer(x)[0], layer=layer)
    assert cost(model, torch.randn(2, steps, 5), batch=batch).flops == 2 * batch * steps * each


def test_norms_count_scales_and_statistics():
    x = torch.randn(2, 6, 4, 4)
    numel = 3 * 6 * 4 * 4
    assert cost(nn.BatchNorm2d(6), x, batch=3).flops == 2 * numel
    for norm in (nn.LayerNorm([6, 4, 4]), nn.GroupNorm(2, 6)):
        assert cost(norm, x, batch=3).flops == 7 * numel


def test_activations_are_outputs_of_products():
    assert costs_of(captured("residual"), batch=2).activations == 2 * (
        8 * 64 + 12 * 64 + 8 * 64 + 5
    )


def test_masks_change_no_count_and_shrinks_do():
    program = captured("residual")
    rule = {"select": "conv1.weight", "method": "ln_structured", "n": 2, "coupled": True}
    masked = fxprune.prune(program, {"rule": [{**rule, "amount": 0.5}]})
    assert costs_of(masked).flops == costs_of(program).flops
    small = shrink(masked)
    before, after = costs_of(program), costs_of(small)
    assert before.of("conv2d") - after.of("conv2d") == 2 * 64 * (6 * 8 * 9 + 8 * 6 * 9)
    assert footprint_of(small).flops == after.flops


@pytest.mark.parametrize(
    ("text", "size"), [("s77", 4), ("3*s77 + 1", 13), ("(s0 + 1)//2", 2), ("2*s0**2", 32)]
)
def test_noted_sizes_are_read_as_arithmetic(text: str, size: int):
    assert size_at(text, 4) == size


@pytest.mark.parametrize("text", ["__import__('os')", "s0.real", "f(s0)", "s0 +", "1.5"])
def test_what_is_no_arithmetic_is_not_read(text: str):
    with pytest.raises(LookupError):
        size_at(text, 4)


def test_latency_leaves_the_programs_as_they_were():
    program = captured("residual").train()
    program.bn1.eval()
    found = latency_of(program, program, batch=3, seconds=0.01)
    assert found is not None
    assert found.rounds >= 5
    assert found.before > 0
    assert program.training
    assert not program.bn1.training
    assert str(found).startswith("batch 3: ")
