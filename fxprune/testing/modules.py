"""The modules around layers in drawn networks: a skip, a concatenation, a second call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Add", "Cat", "FirstOutput", "Twice"]


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
