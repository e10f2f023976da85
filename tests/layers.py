"""Layers as data: frozen dataclasses with a readable repr, each of which makes its module.

A shape is `features` (N, C), `sequence` (N, T, C), or spatial: `signal`, `image`, `volume`
(N, C, then 1, 2 or 3 dimensions).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "ACTIVATIONS",
    "RECURRENT",
    "SPATIAL",
    "Activation",
    "Attention",
    "Concat",
    "Conv",
    "Dropout",
    "Layer",
    "Linear",
    "Norm",
    "Recurrent",
    "Residual",
    "Shared",
]

SPATIAL = {"signal": (5,), "image": (4, 4), "volume": (3, 2, 2)}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "prelu": nn.PReLU}
RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Layer:
    """What every layer is: a value that knows its output width and makes its module."""

    def width_out(self, width: int) -> int:
        """The channels that come out where `width` go in."""
        return width

    def make(self, width: int, shape: str) -> nn.Module:
        """The module for `width` channels of the given kind of shape."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(Layer):
    """A linear layer over the last dimension of features or a sequence."""

    width: int
    bias: bool = True

    def width_out(self, width: int) -> int:
        return self.width

    def make(self, width: int, shape: str) -> nn.Module:
        return nn.Linear(width, self.width, self.bias)


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution of the shape's rank that keeps its size; `depthwise` keeps the width too."""

    width: int
    kernel: int = 1
    bias: bool = True
    depthwise: bool = False

    def width_out(self, width: int) -> int:
        return width if self.depthwise else self.width

    def make(self, width: int, shape: str) -> nn.Module:
        conv = CONVS[len(SPATIAL[shape])]
        groups = width if self.depthwise else 1
        padding = self.kernel // 2
        outputs = self.width_out(width)
        return conv(width, outputs, self.kernel, padding=padding, groups=groups, bias=self.bias)


@dataclass(frozen=True)
class Norm(Layer):
    """Batch norm, layer norm over the last dimension, or group norm in one group."""

    kind: str

    def make(self, width: int, shape: str) -> nn.Module:
        if self.kind == "layer":
            return nn.LayerNorm(width)
        if self.kind == "group":
            return nn.GroupNorm(1, width)
        return BATCH_NORMS[len(SPATIAL.get(shape, ()))](width)


@dataclass(frozen=True)
class Activation(Layer):
    """A pointwise function; `prelu` owns a parameter."""

    kind: str

    def make(self, width: int, shape: str) -> nn.Module:
        return ACTIVATIONS[self.kind]()


@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout, which draws from torch's generator in train mode."""

    p: float

    def make(self, width: int, shape: str) -> nn.Module:
        return nn.Dropout(self.p)


class FirstOutput(nn.Module):
    """Calls a layer that gives a tuple, and keeps the tuple's first entry."""

    def __init__(self, layer: nn.Module, inputs: int) -> None:
        super().__init__()
        self.layer = layer
        self.inputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(*[x] * self.inputs)[0]


@dataclass(frozen=True)
class Recurrent(Layer):
    """An LSTM, GRU or Elman network over a sequence."""

    kind: str
    width: int
    layers: int = 1
    bidirectional: bool = False

    def width_out(self, width: int) -> int:
        return self.width * (1 + self.bidirectional)

    def make(self, width: int, shape: str) -> nn.Module:
        layer = RECURRENT[self.kind](
            width,
            self.width,
            num_layers=self.layers,
            bidirectional=self.bidirectional,
            batch_first=True,
        )
        return FirstOutput(layer, 1)


@dataclass(frozen=True)
class Attention(Layer):
    """Self attention over a sequence."""

    heads: int
    bias: bool = True

    def make(self, width: int, shape: str) -> nn.Module:
        layer = nn.MultiheadAttention(width, self.heads, bias=self.bias, batch_first=True)
        return FirstOutput(layer, 3)


class Add(nn.Module):
    """A skip around a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Cat(nn.Module):
    """A module's output beside its input, along the channels."""

    def __init__(self, inner: nn.Module, dim: int) -> None:
        super().__init__()
        self.inner = inner
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], self.dim)


class Twice(nn.Module):
    """One module that is called twice, under one name or two."""

    def __init__(self, inner: nn.Module, names: int) -> None:
        super().__init__()
        self.inner = inner
        self.again = inner if names == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        second = self.inner if self.again is None else self.again
        return second(torch.tanh(self.inner(x)))


@dataclass(frozen=True)
class Residual(Layer):
    """A skip around a layer that keeps the width."""

    inner: Layer

    def make(self, width: int, shape: str) -> nn.Module:
        return Add(self.inner.make(width, shape))


@dataclass(frozen=True)
class Concat(Layer):
    """A layer's output beside its input."""

    inner: Layer

    def width_out(self, width: int) -> int:
        return width + self.inner.width_out(width)

    def make(self, width: int, shape: str) -> nn.Module:
        return Cat(self.inner.make(width, shape), 1 if shape in SPATIAL else -1)


@dataclass(frozen=True)
class Shared(Layer):
    """A layer that keeps the width, called twice."""

    inner: Layer
    names: int = 1

    def make(self, width: int, shape: str) -> nn.Module:
        return Twice(self.inner.make(width, shape), self.names)
