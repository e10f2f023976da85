"""Layers as data: frozen dataclasses with a readable repr, each of which makes its module.

A shape is `features` (N, C), `sequence` (N, T, C), or spatial: `signal`, `image`, `volume`
(N, C, then 1, 2 or 3 dimensions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fxprune.testing.made import Made
from fxprune.testing.modules import Add, Cat, FirstOutput, Twice

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
