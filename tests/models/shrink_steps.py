"""Steps of drawn networks: each takes images (batch, channels, height, width) and gives images.

A step is built for a number of channels, and tells how many it gives; None where it does not fit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Made = tuple[nn.Module, int] | None


class Function(nn.Module):
    """A function of images, with modules that it calls."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


class Table(nn.Module):
    """A parameter of the channels' shape, added or multiplied."""

    def __init__(self, channels: int, *, adds: bool) -> None:
        super().__init__()
        self.table, self.adds = nn.Parameter(torch.randn(1, channels, 1, 1)), adds

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table if self.adds else x * self.table


class Order(nn.Module):
    """Channels in the order of a buffer, some of them twice."""

    order: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(width).mul(3).remainder(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order]


class Attention(nn.Module):
    """Images as sequences of places, through self-attention written out."""

    def __init__(self, channels: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        rows = x.flatten(2).transpose(1, 2)
        split = self.qkv(rows).reshape(n, h * w, 3, self.heads, c // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) / 3).softmax(-1) @ v
        rows = rows + self.out(mixed.transpose(1, 2).reshape(n, h * w, c))
        return rows.transpose(1, 2).reshape(n, c, h, w)


def _conv(c: int, w: int) -> Made:
    return nn.Conv2d(c, w, 1 + w % 2 * 2, padding=c % 2), w


def _conv_same(c: int, w: int) -> Made:
    return nn.Conv2d(c, w, 3, padding="same", dilation=1 + w % 2, bias=False), w


def _depthwise(c: int, w: int) -> Made:
    return nn.Conv2d(c, c * (1 + w % 2), 3, padding=w // 2 % 2, groups=c), c * (1 + w % 2)


def _grouped(c: int, w: int) -> Made:
    return (nn.Conv2d(c, 2 * w, 1, groups=2, bias=w % 2 == 0), 2 * w) if c % 2 == 0 else None


def _transposed(c: int, w: int) -> Made:
    return nn.ConvTranspose2d(c, w, 2, stride=2, output_padding=w % 2), w


def _transposed_depthwise(c: int, w: int) -> Made:
    return nn.ConvTranspose2d(c, c, 2, groups=c), c


def _batch_norm(c: int, w: int) -> Made:
    norm = nn.BatchNorm2d(c, affine=w % 3 > 0, track_running_stats=w % 4 > 0)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm, c


def _group_norm(c: int, w: int) -> Made:
    return nn.GroupNorm(c // 2 if c % 2 == 0 and w % 2 else 1 + (c % 3 == 0) * 2, c), c


def _instance_norm(c: int, w: int) -> Made:
    return nn.InstanceNorm2d(c, affine=w % 2 == 0, track_running_stats=w % 3 == 0), c


def _layer_norm(c: int, w: int) -> Made:
    return Function(lambda x, n: n(x.movedim(1, -1)).movedim(-1, 1), nn.LayerNorm(c)), c


def _prelu(c: int, w: int) -> Made:
    return nn.PReLU(c if w % 2 else 1), c


def _residual(c: int, w: int) -> Made:
    body = nn.Sequential(nn.Conv2d(c, w, 1), nn.ReLU(), nn.Conv2d(w, c, 3, padding=1))
    return Function(lambda x, b: F.relu(x + b(x)), body), c


def _dead_branch(c: int, w: int) -> Made:
    body = nn.Sequential(nn.Conv2d(c, w, 1), nn.BatchNorm2d(w), nn.Conv2d(w, c, 1, bias=w % 2 == 0))
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.zero_()
    return Function(lambda x, b: b(x) + x, body), c


def _concat(c: int, w: int) -> Made:
    parts = nn.Conv2d(c, w, 1), nn.Conv2d(c, 2, 3, padding=1)
    return Function(lambda x, a, b: torch.cat([a(x).sigmoid(), x, b(x)], 1), *parts), w + c + 2


def _squeeze_excite(c: int, w: int) -> Made:
    gate = nn.Sequential(nn.Conv2d(c, w, 1), nn.ReLU(), nn.Conv2d(w, c, 1), nn.Sigmoid())
    return Function(lambda x, g: x * g(x.mean((2, 3), keepdim=True)), gate), c


def _one_gate(c: int, w: int) -> Made:
    return Function(lambda x, g: x * g(x).sigmoid(), nn.Conv2d(c, 1, 1)), c


def _twice(c: int, w: int) -> Made:
    return Function(lambda x, f: f(F.relu(f(x))), nn.Conv2d(c, c, 1)), c


def _shared_norm(c: int, w: int) -> Made:
    return Function(
        lambda x, a, n: n(a(n(x))), nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)
    ), c


def _attention(c: int, w: int) -> Made:
    heads = next((h for h in (3, 2) if c % h == 0), 1)
    return Attention(c, heads, fused=w % 2 == 0), c


def _multihead(c: int, w: int) -> Made:
    layer = nn.MultiheadAttention(c, 2 if c % 2 == 0 else 1, batch_first=w % 2 == 0)

    def run(x: Tensor, attend: nn.Module) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return attend(rows, rows, rows, need_weights=w % 3 == 0)[0].transpose(1, 2).reshape(x.shape)

    return Function(run, layer), c


def _mlp(c: int, w: int) -> Made:
    body = nn.Sequential(nn.Linear(c, w), nn.GELU(), nn.Dropout(0.5), nn.Linear(w, c))
    return Function(lambda x, b: (x.movedim(1, -1) + b(x.movedim(1, -1))).movedim(-1, 1), body), c


def _recurrent(c: int, w: int) -> Made:
    layer = (nn.LSTM, nn.GRU)[w % 2](c, 3, batch_first=True, bidirectional=w % 3 == 0)
    size = 6 if w % 3 == 0 else 3

    def run(x: Tensor, r: nn.Module) -> Tensor:
        # A step a row, since each step costs 0.2 s of torch.export.
        rows = r(x.mean(3).transpose(1, 2))[0].transpose(1, 2)
        return rows.reshape(x.shape[0], size, x.shape[2], 1) + x.new_zeros(x.shape[3])

    return Function(run, layer), size


def _chunk_gate(c: int, w: int) -> Made:
    if c % 2:
        return None
    return Function(lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid()), c // 2


def _swap(c: int, w: int) -> Made:
    first = 1 + w % c
    if first == c:
        return None

    def run(x: Tensor) -> Tensor:
        a, b = x.split([first, c - first], 1)
        return torch.cat([b, a], 1)

    return Function(run), c


def _in_place(c: int, w: int) -> Made:
    def run(x: Tensor) -> Tensor:
        y = x * 2
        z = F.relu_(y) if w % 2 else y.add_(1)
        return y + z

    return Function(run), c


def _in_place_view(c: int, w: int) -> Made:
    def run(x: Tensor) -> Tensor:
        y = x * 2
        y[:, : 1 + w % c] = 0.5
        return y

    return Function(run), c


def _gram(c: int, w: int) -> Made:
    return Function(lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2)).unsqueeze(-1)), c


def _plain(
    function: Callable[[Tensor], Tensor],
    *,
    when: Callable[[int], bool] = lambda c: True,
    gives: Callable[[int], int] = lambda c: c,
) -> Callable[[int, int], Made]:
    return lambda c, w: (Function(function), gives(c)) if when(c) else None


STEPS: dict[str, Callable[[int, int], Made]] = {
    "conv": _conv,
    "conv_same": _conv_same,
    "depthwise": _depthwise,
    "grouped": _grouped,
    "transposed": _transposed,
    "transposed_depthwise": _transposed_depthwise,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "prelu": _prelu,
    "residual": _residual,
    "dead_branch": _dead_branch,
    "concat": _concat,
    "squeeze_excite": _squeeze_excite,
    "one_gate": _one_gate,
    "twice": _twice,
    "shared_norm": _shared_norm,
    "attention": _attention,
    "multihead": _multihead,
    "mlp": _mlp,
    "recurrent": _recurrent,
    "chunk_gate": _chunk_gate,
    "swap": _swap,
    "in_place": _in_place,
    "in_place_view": _in_place_view,
    "gram": _gram,
    "table_add": lambda c, w: (Table(c, adds=True), c),
    "table_mul": lambda c, w: (Table(c, adds=False), c),
    "order": lambda c, w: (Order(c, w), w),
    "relu": _plain(F.relu),
    "gelu": _plain(F.gelu),
    "hardswish": _plain(F.hardswish),
    "sigmoid": _plain(torch.sigmoid),
    "square": _plain(torch.square),
    "dropout": lambda c, w: (nn.Dropout2d(0.5), c),
    "max_pool": _plain(lambda x: F.max_pool2d(x, 2, 1, padding=1)),
    "avg_pool": _plain(lambda x: F.avg_pool2d(x, 3, 1, padding=1)),
    "avg_pool_inside": _plain(lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
    "adaptive": _plain(lambda x: F.adaptive_avg_pool2d(x, 2)),
    "up": _plain(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")),
    "pad": _plain(lambda x: F.pad(x, (1, 0, 0, 1), value=0.5)),
    "pad_channels": _plain(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), gives=lambda c: c + 2),
    "reflect": _plain(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "flip": _plain(lambda x: x.flip(1)),
    "flip_places": _plain(lambda x: x.flip((-1, 2))),
    "roll": _plain(lambda x: x.roll(1, 1)),
    "slice": _plain(lambda x: x[:, 1:], when=lambda c: c > 1, gives=lambda c: c - 1),
    "steps": _plain(lambda x: x[:, ::2], gives=lambda c: (c + 1) // 2),
    "drop_one": _plain(lambda x: x * x[:, 1].unsqueeze(1), when=lambda c: c > 1),
    "stack": _plain(lambda x: torch.stack([x, x * 2], 2).flatten(1, 2), gives=lambda c: 2 * c),
    "stack_sum": _plain(lambda x: torch.stack([x, x.relu()], 0).sum(0)),
    "repeat": _plain(lambda x: x.repeat(1, 2, 1, 1), gives=lambda c: 2 * c),
    "shuffle": _plain(
        lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), when=lambda c: c % 2 == 0
    ),
    "pixel_shuffle": _plain(
        lambda x: F.pixel_shuffle(x, 2), when=lambda c: c % 4 == 0, gives=lambda c: c // 4
    ),
    "pixel_unshuffle": _plain(
        lambda x: F.pixel_unshuffle(F.interpolate(x, scale_factor=2), 2), gives=lambda c: 4 * c
    ),
    "channel_shuffle": _plain(lambda x: F.channel_shuffle(x, 2), when=lambda c: c % 2 == 0),
    "glu": _plain(lambda x: F.glu(x, 1), when=lambda c: c % 2 == 0, gives=lambda c: c // 2),
    "softmax": _plain(lambda x: x.softmax(1)),
    "cumsum": _plain(lambda x: x.cumsum(1)),
    "normalize": _plain(lambda x: F.normalize(x, dim=1)),
    "mean_over": _plain(lambda x: x - x.mean(1, keepdim=True)),
    "sum_over": _plain(lambda x: x / (1 + x.square().sum(1, keepdim=True))),
    "amax": _plain(lambda x: x - x.amax(1, keepdim=True)),
    "from_zeros": _plain(lambda x: x + x.new_zeros(x.shape) * x),
    "unfold": _plain(
        lambda x: F.fold(F.unfold(x, 3, padding=1) * 2, x.shape[2:], 3, padding=1)  # pyright: ignore
    ),
    "windows": _plain(lambda x: x.unfold(3, 1, 1).mean(-1)),
    "gather": _plain(lambda x: x.gather(2, torch.zeros_like(x, dtype=torch.int64))),
    "scatter": _plain(lambda x: x.scatter(3, torch.zeros_like(x, dtype=torch.int64), x * 2)),
    "look_up": _plain(lambda x: x[:, :, x.argmax(2)[0, 0] * 0] + x),
    "where": _plain(lambda x: torch.where(x > 0, x, x * 0.5)),
    "clamp": _plain(lambda x: x.clamp(0.1, 0.5)),
    "divide": _plain(lambda x: x / (1 + x.abs())),
    "half_add": _plain(lambda x: x + 0.5),
    "sort": _plain(lambda x: x.sort(1).values),
    "einsum": _plain(lambda x: torch.einsum("nchw,nchw->nc", x, x)[:, :, None, None] + x),
    "unbind": _plain(lambda x: torch.stack(x.unbind(1)[::-1], 1)),
    "expand": _plain(lambda x: x.mean((2, 3), keepdim=True).expand_as(x) + x),
    "cast": _plain(lambda x: x.to(torch.int64).to(x.dtype) + x),
}


def step_of(kind: str, channels: int, width: int) -> Made:
    """Return a step and its number of output channels; None where it does not fit."""
    return STEPS[kind](channels, width)
