"""Small nets whose channels are coupled in every way, for coupled pruning and what follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.program.program import Program
from tests.models import store


class Residual(nn.Module):
    """A stem and a block around a skip: the stream is one layer, the inside another."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(width, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(F.relu(x + y).mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted residual with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn = nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depth(F.hardswish(self.bn(self.expand(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.project(x * gate)


class Dense(nn.Module):
    """Two convolutions joined by cat, and one that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(14)
        self.c, self.out = nn.Conv2d(14, 10, 1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.a(x)), torch.tanh(self.b(x))], 1)
        return self.out(F.relu(self.c(self.norm(x))).amax((2, 3)))


class Grouped(nn.Module):
    """A convolution in two groups, which keep equal counts."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 12, 3, groups=2)
        self.out = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.a(x)))))


class Attention(nn.Module):
    """Four heads, and an MLP behind them; layer norms hold the stream."""

    def __init__(self, heads: int = 4, size: int = 8) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        width = heads * size
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, self.size)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 10, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(40, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )


IMAGE = (3, 8, 8)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (_lenet, IMAGE),
    "residual": (Residual, IMAGE),
    "depthwise": (Depthwise, IMAGE),
    "dense": (Dense, IMAGE),
    "grouped": (Grouped, IMAGE),
    "attention": (Attention, (5, 32)),
}


def captured(name: str, *, seed: int = 0) -> Program:
    """Capture a net in float64, with statistics and weights that no default explains."""
    torch.manual_seed(seed)
    build, shape = NETS[name]
    model = build().double()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    return store.capture(model, (torch.randn(4, *shape, dtype=torch.float64),)).eval()


def coupled(amount: Any = 0.5, **keys: Any) -> dict[str, Any]:
    """A recipe with one rule over coupled channels, of all weights."""
    rule = {
        "select": {"op": ["conv2d", "linear"], "role": "weight"},
        "method": "ln_structured",
        "n": 2,
        "amount": amount,
        "coupled": True,
    }
    return {"rule": [rule | keys]}
