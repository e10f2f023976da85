"""Networks as data: `Arch` is a stack of layers on one input, and `build` makes its model.

Layers are frozen and have a readable repr. A shape is `features` (N, C), `sequence` (N, T, C), or
spatial: `signal`, `image`, `volume` (N, C, then 1, 2 or 3 dimensions).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fxprune.errors import PassTypeError

SPATIAL = {"signal": (5,), "image": (4, 4), "volume": (3, 2, 2)}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "prelu": nn.PReLU}
RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class ArchLayer:
    """A layer of an `Arch`."""


@dataclass(frozen=True)
class Linear(ArchLayer):
    """A linear layer over the last dimension of features or a sequence."""

    width: int
    bias: bool = True


@dataclass(frozen=True)
class Conv(ArchLayer):
    """A convolution of the shape's rank that keeps its size; `depthwise` keeps the width too."""

    width: int
    kernel: int = 1
    bias: bool = True
    depthwise: bool = False


@dataclass(frozen=True)
class Norm(ArchLayer):
    """Batch norm, layer norm over the last dimension, or group norm in one group."""

    kind: str


@dataclass(frozen=True)
class Activation(ArchLayer):
    """A pointwise function; `prelu` owns a parameter."""

    kind: str


@dataclass(frozen=True)
class Dropout(ArchLayer):
    """Dropout, which draws from torch's generator in train mode."""

    p: float


@dataclass(frozen=True)
class Recurrent(ArchLayer):
    """An LSTM, GRU or Elman network over a sequence."""

    kind: str
    width: int
    layers: int = 1
    bidirectional: bool = False


@dataclass(frozen=True)
class Attention(ArchLayer):
    """Self attention over a sequence."""

    heads: int
    bias: bool = True


@dataclass(frozen=True)
class Residual(ArchLayer):
    """A skip around a layer that keeps the width."""

    inner: ArchLayer


@dataclass(frozen=True)
class Concat(ArchLayer):
    """A layer's output beside its input."""

    inner: ArchLayer


@dataclass(frozen=True)
class Shared(ArchLayer):
    """A layer that keeps the width, called twice, under one name or two."""

    inner: ArchLayer
    names: int = 1


def width_after(layer: ArchLayer, width: int) -> int:
    """Return how many channels come out of a layer where `width` go in."""
    match layer:
        case Linear() | Conv(depthwise=False):
            return layer.width
        case Recurrent():
            return layer.width * (1 + layer.bidirectional)
        case Concat():
            return width + width_after(layer.inner, width)
        case _:
            return width


def call_of(layer: ArchLayer, width: int, shape: str) -> ModuleCall:
    """Return the call that makes a layer's module for `width` channels of a kind of shape."""
    rank = len(SPATIAL.get(shape, ()))
    options: dict[str, Any] = {} if getattr(layer, "bias", True) else {"bias": False}
    match layer:
        case Linear():
            return ModuleCall(nn.Linear, width, layer.width, **options)
        case Conv():
            padding = {"padding": layer.kernel // 2} if layer.kernel > 1 else {}
            groups = {"groups": width} if layer.depthwise and width > 1 else {}
            sizes = (width, width_after(layer, width), layer.kernel)
            return ModuleCall(CONVS[rank], *sizes, **padding, **groups, **options)
        case Norm("layer"):
            return ModuleCall(nn.LayerNorm, width)
        case Norm("group"):
            return ModuleCall(nn.GroupNorm, 1, width)
        case Norm():
            return ModuleCall(BATCH_NORMS[rank], width)
        case Activation():
            return ModuleCall(ACTIVATIONS[layer.kind])
        case Dropout():
            return ModuleCall(nn.Dropout, layer.p)
        case Recurrent():
            options["batch_first"] = True
            if layer.layers > 1:
                options["num_layers"] = layer.layers
            if layer.bidirectional:
                options["bidirectional"] = True
            network = ModuleCall(RECURRENT[layer.kind], width, layer.width, **options)
            return ModuleCall(FirstOutput, network)
        case Attention():
            options["batch_first"] = True
            attention = ModuleCall(nn.MultiheadAttention, width, layer.heads, **options)
            return ModuleCall(FirstOutput, attention, 3)
        case Residual():
            return ModuleCall(Add, call_of(layer.inner, width, shape))
        case Concat():
            inner = call_of(layer.inner, width, shape)
            return ModuleCall(Cat, inner, 1 if shape in SPATIAL else -1)
        case Shared():
            inner = call_of(layer.inner, width, shape)
            return ModuleCall(Twice, inner, *([] if layer.names == 1 else [2]))
        case _:
            raise PassTypeError(f"{layer!r} is no layer of a drawn network")


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
    layers: tuple[ArchLayer, ...] = ()
    tied: bool = False
    keywords: bool = False
    dtype: str = "float32"
    grid: float | None = None
    outlier: float | None = None
    frozen: bool = False
    seed: int = 0

    @property
    def widths(self) -> list[int]:
        """Channels in front of each layer, and behind the last one."""
        widths = [self.width]
        for layer in self.layers:
            widths.append(width_after(layer, widths[-1]))
        return widths

    @property
    def calls(self) -> list[ModuleCall]:
        """The calls that make the layers' modules."""
        shape = "sequence" if self.shape == "tokens" else self.shape
        pairs = zip(self.layers, self.widths, strict=False)
        return [call_of(layer, width, shape) for layer, width in pairs]


class Network(nn.Module):
    """The model of an `Arch`."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, arch.width) if arch.shape == "tokens" else None
        self.layers = nn.ModuleList(call.build() for call in arch.calls)
        self.output = None
        if arch.tied and self.embedding is not None:
            self.project = nn.Linear(arch.widths[-1], arch.width)
            self.output = nn.Linear(arch.width, VOCABULARY)
            self.output.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Run the embedding, the layers and the output, as far as there are any."""
        if self.embedding is not None:
            x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        return x if self.output is None else self.output(self.project(x))


class KeywordNetwork(nn.Module):
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


class ModelAndInputs(NamedTuple):
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


def build(arch: Arch) -> ModelAndInputs:
    """Build the model of an architecture and its inputs, the same each time."""
    dtype = getattr(torch, arch.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arch.seed)
        network = Network(arch)
        randomise(network, arch)
        model = network.to(dtype)
        x = example_input(arch, dtype)
        if not arch.keywords:
            return ModelAndInputs(model, (x,), {})
        return ModelAndInputs(
            KeywordNetwork(network), (), {"x": x, "gate": torch.randn(BATCH, dtype=dtype)}
        )


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


class ModuleCall:
    """A call of a module's class, its arguments values or modules that are made likewise.

    Example:
        >>> call = ModuleCall(nn.Linear, 2, 3, bias=False)
        >>> call.code(), call.build().weight.shape
        ('nn.Linear(2, 3, bias=False)', torch.Size([3, 2]))
    """

    def __init__(self, kind: type[nn.Module], *args: Any, **options: Any) -> None:
        self.kind, self.args, self.options = kind, args, options

    def build(self) -> nn.Module:
        """Make the module."""
        args = [arg.build() if isinstance(arg, ModuleCall) else arg for arg in self.args]
        return self.kind(*args, **self.options)

    def code(self) -> str:
        """Write the call; torch's own classes are under `nn`."""
        args = [arg.code() if isinstance(arg, ModuleCall) else repr(arg) for arg in self.args]
        args += [f"{key}={value!r}" for key, value in self.options.items()]
        prefix = "nn." if self._is_torchs else ""
        return f"{prefix}{self.kind.__name__}({', '.join(args)})"

    def sources(self) -> Iterator[str]:
        """Yield the source of each class that is not torch's own."""
        if not self._is_torchs:
            yield inspect.getsource(self.kind)
        for arg in self.args:
            if isinstance(arg, ModuleCall):
                yield from arg.sources()

    @property
    def _is_torchs(self) -> bool:
        return getattr(nn, self.kind.__name__, None) is self.kind
