"""Small models of the zoo with what a graph capture easily gets wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CalledTwice(nn.Module):
    """One linear layer that is called twice, once around a nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(F.relu(self.shared(x))))


class KwargsDict(nn.Module):
    """Keyword inputs, one of them None unless given, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(5, 4)
        self.bias = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(
        self,
        features: Tensor,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> dict[str, Tensor | tuple[Tensor, ...]]:
        hidden = self.query(features) * scale
        if context is not None:
            hidden = hidden + self.bias(context).unsqueeze(1)
        if mask is not None:
            hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0.0)
        pooled = torch.tanh(hidden.sum(1))
        return {"logits": self.head(pooled), "states": (hidden, pooled)}


class MiscConvs(nn.Module):
    """Convolutions of every rank, a transposed one, and the norms and odd layers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(3, 6, 3, padding=1, padding_mode="circular")
        self.group_norm = nn.GroupNorm(2, 6)
        self.prelu = nn.PReLU(6)
        self.up = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1)
        self.instance_norm = nn.InstanceNorm1d(4, affine=True)
        self.conv3d = nn.Conv3d(2, 3, 3, padding=1, groups=1)
        self.layer_norm = nn.LayerNorm(3)
        self.bilinear = nn.Bilinear(4, 3, 5)

    def forward(self, signal: Tensor, volume: Tensor) -> Tensor:
        signal = self.prelu(self.group_norm(self.conv1d(signal)))
        signal = F.elu(self.instance_norm(self.up(signal)))
        volume = F.leaky_relu(self.conv3d(volume))
        pooled = self.layer_norm(volume.mean((2, 3, 4)))
        return self.bilinear(signal.mean(2), pooled)


class Buffers(nn.Module):
    """Non-persistent buffer, empty submodule, unused parameter and a plain tensor constant."""

    inv_freq: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.arange(1.0, 5.0).reciprocal(), persistent=False)
        self.register_buffer("shift", torch.randn(4))
        self.fc1 = nn.Linear(4, 4)
        self.empty = nn.Sequential()
        self.unused = nn.Parameter(torch.randn(3, 2))
        self.spare = nn.Linear(2, 2)
        self.constant = torch.tensor([1.0, -1.0, 0.5, 2.0])
        self.fc2 = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x * self.inv_freq + self.shift)
        return self.fc2(self.empty(torch.sin(x)) * self.constant)


class SharedModule(nn.Module):
    """One module under two names, so that each of its parameters has an alias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = self.first
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(F.gelu(self.first(x))))
