"""Architectures as data: `Arch` is a stack of layers on one input, and `build` makes its model.

`build(arch)` gives the same model and inputs each time.

Layers as data: frozen dataclasses with a readable repr, each of which makes its module.

A shape is `features` (N, C), `sequence` (N, T, C), or spatial: `signal`, `image`, `volume`
(N, C, then 1, 2 or 3 dimensions).

The modules around layers in drawn networks: a skip, a concatenation, a second call.

Modules as calls: what builds a module also prints as the code that builds it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SPATIAL = {"signal": (5,), "image": (4, 4), "volume": (3, 2, 2)}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "prelu": nn.PReLU}
RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def _bias(bias: bool) -> dict[str, bool]:
    return {} if bias else {"bias": False}


class Layer:
    """What every layer is: a value that knows its output width and makes its module."""

    def width_out(self, width: int) -> int:
        """Return the channels that come out where `width` go in."""
        return width

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes the module for `width` channels of a kind of shape."""
        raise NotImplementedError

    def make(self, width: int, shape: str) -> nn.Module:
        """Return the module for `width` channels of a kind of shape."""
        return self.made(width, shape).build()


@dataclass(frozen=True)
class Linear(Layer):
    """A linear layer over the last dimension of features or a sequence."""

    width: int
    bias: bool = True

    def width_out(self, width: int) -> int:
        """Return the channels that come out."""
        return self.width

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes its module."""
        return Made(nn.Linear, width, self.width, **_bias(self.bias))


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution of the shape's rank that keeps its size; `depthwise` keeps the width too."""

    width: int
    kernel: int = 1
    bias: bool = True
    depthwise: bool = False

    def width_out(self, width: int) -> int:
        """Return the channels that come out."""
        return width if self.depthwise else self.width

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes its module."""
        conv = CONVS[len(SPATIAL[shape])]
        options = {"padding": self.kernel // 2} if self.kernel > 1 else {}
        if self.depthwise and width > 1:
            options["groups"] = width
        return Made(conv, width, self.width_out(width), self.kernel, **options, **_bias(self.bias))


@dataclass(frozen=True)
class Norm(Layer):
    """Batch norm, layer norm over the last dimension, or group norm in one group."""

    kind: str

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes its module."""
        if self.kind == "layer":
            return Made(nn.LayerNorm, width)
        if self.kind == "group":
            return Made(nn.GroupNorm, 1, width)
        return Made(BATCH_NORMS[len(SPATIAL.get(shape, ()))], width)


@dataclass(frozen=True)
class Activation(Layer):
    """A pointwise function; `prelu` owns a parameter."""

    kind: str

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes its module."""
        return Made(ACTIVATIONS[self.kind])


@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout, which draws from torch's generator in train mode."""

    p: float

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes its module."""
        return Made(nn.Dropout, self.p)


@dataclass(frozen=True)
class Recurrent(Layer):
    """An LSTM, GRU or Elman network over a sequence."""

    kind: str
    width: int
    layers: int = 1
    bidirectional: bool = False

    def width_out(self, width: int) -> int:
        """Return the channels that come out."""
        return self.width * (1 + self.bidirectional)

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes its module."""
        options: dict[str, Any] = {"batch_first": True}
        if self.layers > 1:
            options["num_layers"] = self.layers
        if self.bidirectional:
            options["bidirectional"] = True
        return Made(FirstOutput, Made(RECURRENT[self.kind], width, self.width, **options))


@dataclass(frozen=True)
class Attention(Layer):
    """Self attention over a sequence."""

    heads: int
    bias: bool = True

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes its module."""
        options = {**_bias(self.bias), "batch_first": True}
        return Made(FirstOutput, Made(nn.MultiheadAttention, width, self.heads, **options), 3)


@dataclass(frozen=True)
class Residual(Layer):
    """A skip around a layer that keeps the width."""

    inner: Layer

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes its module."""
        return Made(Add, self.inner.made(width, shape))


@dataclass(frozen=True)
class Concat(Layer):
    """A layer's output beside its input."""

    inner: Layer

    def width_out(self, width: int) -> int:
        """Return the channels that come out."""
        return width + self.inner.width_out(width)

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes its module."""
        return Made(Cat, self.inner.made(width, shape), 1 if shape in SPATIAL else -1)


@dataclass(frozen=True)
class Shared(Layer):
    """A layer that keeps the width, called twice."""

    inner: Layer
    names: int = 1

    def made(self, width: int, shape: str) -> Made:
        """Return the call that makes its module."""
        return Made(Twice, self.inner.made(width, shape), *([] if self.names == 1 else [2]))


BATCH = 3
STEPS = 3
VOCABULARY = 5


@dataclass(frozen=True)
class Arch:
    """A stack of layers on one input.

    Attributes:
        shape: kind of input: features, sequence, signal, image, volume or tokens.
        width: channels of the input, or of the embedding.
        layers: from input to output.
        tied: whether the output layer's weight is the embedding's (tokens only).
        keywords: whether inputs and outputs are named: two keyword inputs, a dict of outputs.
        dtype: of the parameters: float32, float64 or bfloat16.
        grid: round parameters to this step, which makes equal magnitudes.
        outlier: a value that is put into the first matrix: an infinity, NaN, ...
        frozen: whether the first parameter of several is not trained.
        seed: of parameters and inputs.
    """

    shape: str
    width: int
    layers: tuple[Layer, ...] = ()
    tied: bool = False
    keywords: bool = False
    dtype: str = "float32"
    grid: float | None = None
    outlier: float | None = None
    frozen: bool = False
    seed: int = 0


class Network(nn.Module):
    """The model of an `Arch`."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        shape, width = arch.shape, arch.width
        self.embedding = None
        if shape == "tokens":
            shape, self.embedding = "sequence", nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList()
        for layer in arch.layers:
            self.layers.append(layer.make(width, shape))
            width = layer.width_out(width)
        self.output = None
        if arch.tied and self.embedding is not None:
            self.project = nn.Linear(width, arch.width)
            self.output = nn.Linear(arch.width, VOCABULARY)
            self.output.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Run the embedding, the layers and the output, as far as there are any."""
        if self.embedding is not None:
            x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        return x if self.output is None else self.output(self.project(x))


class Named(nn.Module):
    """A network with keyword inputs, one of them None unless given, and a dict of outputs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, *, x: Tensor, gate: Tensor | None = None, shift: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run the network, scaled and shifted by row."""
        y = self.network(x)
        per_row = (-1, *[1] * (y.ndim - 1))
        if gate is not None:
            y = y * gate.view(per_row)
        if shift is not None:
            y = y + shift.view(per_row)
        return {"y": y, "sum": y.flatten(1).sum(1)}


class Built(NamedTuple):
    """A model and example inputs, the batch in dimension 0 of each."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def example_input(arch: Arch, dtype: torch.dtype) -> Tensor:
    """Draw an input of the shape that an architecture takes."""
    if arch.shape == "tokens":
        return torch.randint(0, VOCABULARY, (BATCH, STEPS))
    if arch.shape == "sequence":
        return torch.randn(BATCH, STEPS, arch.width, dtype=dtype)
    return torch.randn(BATCH, arch.width, *SPATIAL.get(arch.shape, ()), dtype=dtype)


def randomise(model: nn.Module, arch: Arch) -> None:
    """Draw every parameter anew: biases and norms start out as constants, which hides mistakes."""
    parameters = list(model.parameters())
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn(p.shape) * 0.7)
            if arch.grid is not None:
                p.copy_((p / arch.grid).round() * arch.grid)
        if arch.outlier is not None:
            next(p for p in parameters if p.ndim > 1).view(-1)[-1] = arch.outlier
    if arch.frozen and len(parameters) > 1:
        parameters[0].requires_grad_(False)


def build(arch: Arch) -> Built:
    """Build the model of an architecture and its inputs, the same each time."""
    dtype = getattr(torch, arch.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arch.seed)
        network = Network(arch)
        randomise(network, arch)
        model = network.to(dtype)
        x = example_input(arch, dtype)
        if not arch.keywords:
            return Built(model, (x,), {})
        return Built(Named(network), (), {"x": x, "gate": torch.randn(BATCH, dtype=dtype)})


class Add(nn.Module):
    """A skip around a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what the module makes of it."""
        return x + self.inner(x)


class Cat(nn.Module):
    """A module's output beside its input, along the channels."""

    def __init__(self, inner: nn.Module, dim: int) -> None:
        super().__init__()
        self.inner = inner
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return x with what the module makes of it behind."""
        return torch.cat([x, self.inner(x)], self.dim)


class FirstOutput(nn.Module):
    """Calls a layer that gives a tuple, and keeps the tuple's first entry."""

    def __init__(self, layer: nn.Module, inputs: int = 1) -> None:
        super().__init__()
        self.layer = layer
        self.inputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the first entry."""
        return self.layer(*[x] * self.inputs)[0]


class Twice(nn.Module):
    """One module that is called twice, under one name or two."""

    def __init__(self, inner: nn.Module, names: int = 1) -> None:
        super().__init__()
        self.inner = inner
        self.again = inner if names == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Call it, and call it again."""
        second = self.inner if self.again is None else self.again
        return second(torch.tanh(self.inner(x)))


class Made:
    """A call of a module's class, its arguments values or modules that are made likewise.

    Args:
        kind: the class.
        args: positional arguments.
        options: keyword arguments.

    Example:
        >>> made = Made(nn.Linear, 2, 3, bias=False)
        >>> made.code(), made.build().weight.shape
        ('nn.Linear(2, 3, bias=False)', torch.Size([3, 2]))
    """

    def __init__(self, kind: type[nn.Module], *args: Any, **options: Any) -> None:
        self.kind, self.args, self.options = kind, args, options

    def build(self) -> nn.Module:
        """Make the module."""
        args = [arg.build() if isinstance(arg, Made) else arg for arg in self.args]
        return self.kind(*args, **self.options)

    def code(self) -> str:
        """Write the call; torch's own classes are under `nn`."""
        args = [arg.code() if isinstance(arg, Made) else repr(arg) for arg in self.args]
        args += [f"{key}={value!r}" for key, value in self.options.items()]
        prefix = "nn." if self._is_torchs else ""
        return f"{prefix}{self.kind.__name__}({', '.join(args)})"

    def sources(self) -> Iterator[str]:
        """Yield the source of each class that is not torch's own."""
        if not self._is_torchs:
            yield inspect.getsource(self.kind)
        for arg in self.args:
            if isinstance(arg, Made):
                yield from arg.sources()

    @property
    def _is_torchs(self) -> bool:
        return getattr(nn, self.kind.__name__, None) is self.kind
