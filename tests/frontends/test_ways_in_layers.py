"""Layers of a trace without an example: functions of their parameters, with the layer's bits."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.program import ops, sites_of
from fxprune.program.program import Program
from tests.tools.capture_helpers import check_same, masked, net, run, written

V, S, P, W = (4, 6), (4, 6, 5), (4, 6, 5, 5), (4, 6, 4, 4, 4)
NONE: Any = None  # torch takes it for a momentum, and its types do not

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 3), V),
    "linear, no bias": (lambda: nn.Linear(6, 3, bias=False), V),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, padding="same"), S),
    "conv1d, circular": (lambda: nn.Conv1d(6, 4, 3, padding=1, padding_mode="circular"), S),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2), P),
    "conv2d, valid": (lambda: nn.Conv2d(6, 4, 3, padding="valid", dilation=2), P),
    "conv2d, reflect": (lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="reflect"), P),
    "conv2d, replicate": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="replicate"), P),
    "conv3d": (lambda: nn.Conv3d(6, 4, 3, bias=False), W),
    "transposed 1d": (lambda: nn.ConvTranspose1d(6, 4, 3, stride=2, output_padding=1), S),
    "transposed 2d": (lambda: nn.ConvTranspose2d(6, 4, 3, padding=1, groups=2, dilation=2), P),
    "transposed 3d": (lambda: nn.ConvTranspose3d(6, 4, 2), W),
    "batch norm 1d": (lambda: nn.BatchNorm1d(6), S),
    "batch norm 2d": (lambda: nn.BatchNorm2d(6, eps=1e-3, momentum=0.3), P),
    "batch norm 3d": (lambda: nn.BatchNorm3d(6, affine=False), W),
    "batch norm, cumulative": (lambda: nn.BatchNorm2d(6, momentum=None), P),
    "batch norm, untracked": (lambda: nn.BatchNorm2d(6, track_running_stats=False), P),
    "layer norm": (lambda: nn.LayerNorm([6, 5]), S),
    "layer norm, plain": (lambda: nn.LayerNorm(5, elementwise_affine=False, eps=1e-3), S),
    "group norm": (lambda: nn.GroupNorm(3, 6), P),
    "instance norm": (lambda: nn.InstanceNorm2d(6, affine=True), P),
    "instance norm, tracked": (lambda: nn.InstanceNorm1d(6, track_running_stats=True), S),
    "instance norm, one": (lambda: nn.InstanceNorm1d(4, affine=True, momentum=NONE), V),
    "rms norm": (lambda: nn.RMSNorm(5), S),
    "prelu": (lambda: nn.PReLU(6), P),
    "relu": (nn.ReLU, V),
    "relu6": (nn.ReLU6, V),
    "relu, in place": (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)), V),
    "leaky relu": (lambda: nn.LeakyReLU(0.3), V),
    "elu": (lambda: nn.ELU(0.7), V),
    "selu": (nn.SELU, V),
    "celu": (lambda: nn.CELU(1.5), V),
    "gelu": (lambda: nn.GELU("tanh"), V),
    "silu": (nn.SiLU, V),
    "mish": (nn.Mish, V),
    "sigmoid": (nn.Sigmoid, V),
    "tanh": (nn.Tanh, V),
    "hardtanh": (lambda: nn.Hardtanh(-0.5, 0.5), V),
    "hardswish": (nn.Hardswish, V),
    "hardsigmoid": (nn.Hardsigmoid, V),
    "softplus": (lambda: nn.Softplus(2.0), V),
    "softmax": (lambda: nn.Softmax(1), V),
    "log softmax": (lambda: nn.LogSoftmax(-1), V),
    "dropout": (lambda: nn.Dropout(0.4), V),
    "dropout, in place": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(inplace=True)), V),
    "dropout 2d": (lambda: nn.Dropout2d(0.4), P),
    "alpha dropout": (lambda: nn.AlphaDropout(0.4), V),
    "max pool": (lambda: nn.MaxPool2d(2, 1, padding=1), P),
    "max pool 1d": (lambda: nn.MaxPool1d(3, ceil_mode=True), S),
    "average pool": (lambda: nn.AvgPool2d(2, count_include_pad=False), P),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d((1, 2)), P),
    "adaptive pool 1d": (lambda: nn.AdaptiveAvgPool1d(2), S),
    "zero pad": (lambda: nn.ZeroPad2d((1, 0, 2, 1)), P),
    "identity": (nn.Identity, V),
    "flatten": (lambda: nn.Flatten(), P),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), (4, 8, 3, 3)),
}
# torch.export needs a batch, and a momentum that is a number.
NOT_EXPORTED = {"instance norm, one", "batch norm, cumulative"}
CALLS = ("call_function", "call_method")
HELPERS = {"count_batch", "average_factor"}


def made(name: str) -> tuple[fx.GraphModule, Tensor]:
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(layer())), torch.randn(*shape)


def operators(program: Program) -> Counter[str]:
    calls = (node for graph in program.graphs.values() for node in graph.nodes)
    names = (ops.canonical_name(node.target) for node in calls if node.op in CALLS)
    return Counter(name for name in names if name not in HELPERS)


def check_both(program: nn.Module, source: nn.Module, args: tuple[Any, ...]) -> None:
    """Hold two models to each other in both modes, their gradients and states after it too."""
    for train in (True, False, True):
        program.train(train)
        source.train(train)
        outputs = [run(side, args) for side in (program, source)]
        check_same(outputs[0], outputs[1], train)
        if outputs[0].requires_grad:
            for output in outputs:
                output.square().sum().backward()
    check_same([p.grad for p in program.parameters()], [p.grad for p in source.parameters()])
    assert list(program.state_dict()) == list(source.state_dict())
    check_same(dict(program.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_the_bits_that_it_gave(name: str) -> None:
    traced, x = made(name)
    program = fxprune.capture(traced)
    assert not program.graph.find_nodes(op="call_module")
    check_both(program, copy.deepcopy(traced), (x,))


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - NOT_EXPORTED))
def test_a_layer_with_parameters_has_the_sites_that_export_gives_it(name: str) -> None:
    traced, x = made(name)
    found, exported = fxprune.capture(traced), fxprune.capture(traced, (x,))
    assert sites_of(found) == sites_of(exported)


def test_embeddings_and_layers_of_two_inputs() -> None:
    torch.manual_seed(0)
    model = net(
        lambda self, ids, x: self.bilinear(self.table(ids), x) + self.bag(ids).unsqueeze(1),
        table=nn.Embedding(9, 4, padding_idx=2),
        bag=nn.EmbeddingBag(9, 3, mode="sum"),
        bilinear=nn.Bilinear(4, 2, 3),
    )
    args = (torch.randint(0, 9, (4, 5)), torch.randn(4, 5, 2))
    traced = fx.symbolic_trace(model)
    program = masked(traced, op=["embedding", "embedding_bag", "bilinear"], role="weight")
    assert list(program.masks) == ["table.weight", "bilinear.weight", "bag.weight"]
    check_same(program(*args), written(traced, program.masks)(*args))


def test_an_embedding_that_shortens_its_rows() -> None:
    torch.manual_seed(0)
    traced = fx.symbolic_trace(nn.Sequential(nn.Embedding(9, 4, max_norm=0.5)))
    program = fxprune.capture(traced)
    ids = torch.tensor([[1, 2], [3, 1]])
    check_both(program, copy.deepcopy(traced), (ids,))


def test_a_batch_without_a_batch_dimension_is_normalised_alone() -> None:
    traced = fx.symbolic_trace(nn.Sequential(nn.InstanceNorm1d(5, affine=True)))
    x = torch.randn(5, 5)
    check_same(fxprune.capture(traced)(x), traced(x))


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer": nn.ReLU(),
    "layer, in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu, in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method, in place": lambda x: x.relu_(),
}


@pytest.mark.parametrize("kind", RELUS)
@pytest.mark.parametrize("way", ["layers", "functions"])
def test_every_relu_is_one(kind: str, way: str) -> None:
    torch.manual_seed(0)
    relu = RELUS[kind]

    def forward(self: Any, x: Tensor) -> Tensor:
        if way == "layers":
            return relu(self.bn(self.conv(x)))
        y = F.conv2d(x, self.conv.weight, self.conv.bias, stride=(1, 1))
        y = F.batch_norm(y, None, None, self.bn.weight, self.bn.bias, training=True)
        return relu(y)

    parts = {"relu": relu} if isinstance(relu, nn.Module) else {}
    traced = fx.symbolic_trace(net(forward, conv=nn.Conv2d(2, 3, 3), bn=nn.BatchNorm2d(3), **parts))
    program = fxprune.capture(traced)
    assert list(operators(program)) == ["conv2d", "batch_norm", "relu"]
    x = torch.randn(2, 2, 5, 5)
    check_same(program(x.clone()), traced(x.clone()))


def test_what_may_mean_two_operators_stays_as_it_is() -> None:
    """A placeholder may be a number, so that its sum may be of tensors or not."""
    model = net(lambda self, x, y: (x + y, torch.add(x, y), x.add(y), x.size(y), x[0]))
    program = fxprune.capture(fx.symbolic_trace(model))
    x = torch.randn(2, 3)
    check_same(program(x, 1), model(x, 1))
    assert list(operators(program).elements()) == ["add", "add", "add", "size", "getitem"]


def test_operators_of_python_have_torch_s_names() -> None:
    found = [operator.iadd, operator.truediv, operator.itruediv, operator.imul, operator.not_]
    assert list(map(ops.canonical_name, found)) == ["add", "div", "div", "mul", "not_"]
