"""Models that torch.export cannot take whole, at module level so that they pickle by reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Linear, batch norm, dropout."""

    def __init__(self, inputs: int = 4, outputs: int = 4) -> None:
        super().__init__()
        self.l = nn.Linear(inputs, outputs)
        self.bn = nn.BatchNorm1d(outputs)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.bn(self.l(x))))


class RootBranch(nn.Module):
    """Branches at the top; each way is a block of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 1.5))
        self.stem = Block(3)
        self.up = Block()
        self.down = Block()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x) * self.scale
        if x.sum() > 0:  # the branch
            return self.head(self.up(y))
        return self.head(self.down(y))


class Gate(nn.Module):
    """Branches on what its own layer says."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4))
        self.l = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.l(x) + self.bias
        if y.mean() > 0:  # the gate
            return y
        return -y


class Nested(nn.Module):
    """A gate two levels down, between blocks that export takes."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(Block(3), Block())
        self.middle = nn.Sequential(nn.Linear(4, 4), Gate(), nn.Linear(4, 4))
        self.back = nn.ModuleList([Block(), nn.Linear(4, 2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.front(x))
        for layer in self.back:
            x = layer(x)
        return x


class Loop(nn.Module):
    """Calls one block until the values are small; its state says how often."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.head = nn.Linear(4, 2)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        left = x.abs().max()
        while left > 1:  # the loop
            x, left = self.block(x), left / 2
            self.calls += 1
        return self.head(x)


class Tied(nn.Module):
    """An embedding whose weight is the output layer's as well, in two regions."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.mid = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        if ids.max() > 5:
            x = self.mid(x)
        return self.out(x)


class Outside(nn.Module):
    """Reads the weight of one layer itself, and never calls another."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.mid = nn.Linear(6, 6)
        self.idle = nn.Linear(6, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.mid(self.emb(ids))
        if x.sum() > 1000:
            x = self.idle(x)
        return x @ self.emb.weight.T


class Decoder(nn.Module):
    """Grows a sequence, so that its blocks see several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        while x.shape[1] < 2 + int(x[0, 0, 0].abs().ceil().clamp(1, 3)):
            x = torch.cat([x, self.head(self.layer(x)[:, -1:])], dim=1)
        return x


class Keyed(nn.Module):
    """Calls a layer in several ways to write the same, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.add = Add()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, *, flip: bool = False) -> dict[str, Any]:
        y = self.add(x, by=x) if x.sum() > 0 else self.add(x, x)
        y = self.add(by=self.add(x, y, None), x=x)
        return {"out": self.head(-y if flip else y), "sums": [y.sum(), None]}


class Add(nn.Module):
    """Adds after a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x: Tensor, by: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.l(x) + (by if mask is None else by * mask)


class Ranks(nn.Module):
    """Calls one layer with inputs of two ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) if x.sum() > 0 else self.l(x[:, None])[:, 0]


class Recurrent(nn.Module):
    """A recurrent layer, then attention to itself or to something else."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 4, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        keys = y if x.sum() > 0 else y.flip(-1)
        return self.attention(y, keys, keys)[0]


class Moody(nn.Module):
    """A region whose graph differs between train and eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Deep()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)) if x.sum() > 0 else self.head(-self.inner(x))


class Deep(nn.Module):
    """Has a layer more in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(4, 4)
        self.sometimes = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.always(x)
        return self.sometimes(x).relu() if self.training else x


class Constants(nn.Module):
    """Two regions with constants of their own; the Python code reads and sets attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Scaled(2.0)
        self.second = Scaled(3.0)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = last = self.second(self.first(x))
        return last * self.first.scale if x.sum() > 0 else -last


class Scaled(nn.Module):
    """Multiplies by a plain attribute, and adds a tensor made on the spot."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.scale = torch.full((4,), scale)
        self.added = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * self.scale + torch.tensor([1.0, 2.0, self.added, 4.0])


class Walk(nn.Module):
    """Python code that looks into its layers: attributes, classes, methods, children."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)])
        self.deep = Twice()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if isinstance(layer, nn.Linear) and x.sum() > -1000:
                x = x[:, : layer.in_features]
            x = layer(x)
        return self.deep(x) if x.sum() > 0 else self.deep.backwards(x)


class Twice(nn.Module):
    """Has a second method that runs its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * 2

    def backwards(self, x: Tensor) -> Tensor:
        return self.l(-x) / 2
