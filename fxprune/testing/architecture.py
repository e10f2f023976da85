"""Architectures as data: `Arch` is a stack of layers on one input, and `build` makes its model.

`build(arch)` gives the same model and inputs each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fxprune.testing.layers import SPATIAL, Layer

__all__ = ["BATCH", "STEPS", "VOCABULARY", "Arch", "Built", "Named", "build"]

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
