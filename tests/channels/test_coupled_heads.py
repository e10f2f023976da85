"""Heads are cut whatever a model makes for each of them beside its weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.compiler.shrinking import shrink
from tests.models.coupled_nets import coupled

HEADS, SIZE, PLACES = 4, 8, 5
WIDTH = HEADS * SIZE


class Heads(nn.Module):
    """Attention, with something added to its scores.

    Args:
        extra: takes the module, the queries, (batch, heads, places, size), and the input; returns
            what is added to the scores.
        merged: whether batch and heads are one axis.
    """

    def __init__(self, extra: Callable[..., Tensor], *, merged: bool = False) -> None:
        super().__init__()
        self.extra, self.merged = extra, merged
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.places = nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(2 * PLACES, WIDTH))

    def split(self, x: Tensor) -> Tensor:
        found = x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)
        return found.reshape(-1, *found.shape[2:]) if self.merged else found

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(part(x)) for part in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) + self.extra(self, q, x)
        mixed = scores.softmax(-1) @ v
        mixed = mixed.view(-1, HEADS, PLACES, SIZE).transpose(1, 2)
        return self.out(mixed.reshape(x.shape))


def slopes(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    steps = torch.pow(0.5, torch.arange(1, HEADS + 1))
    return steps.view(-1, 1, 1) * torch.arange(PLACES)


def merged_slopes(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    return slopes(net, q, x).repeat(x.shape[0], 1, 1)


def zeros(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    return torch.zeros(1, HEADS, PLACES, PLACES)


def merged_zeros(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    return torch.zeros(q.shape[0], PLACES, PLACES)


def expanded(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    return x.mean(-1)[:, None, None, :].expand(-1, HEADS, -1, -1)


def merged_mask(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    """As nn.MultiheadAttention spreads its key_padding_mask."""
    return x.mean(-1)[:, None, None, :].expand(-1, HEADS, -1, -1).reshape(-1, 1, PLACES)


def tiled(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    return x.mean(-1)[:, None, None, :].repeat(1, HEADS, 1, 1)


def looked_up(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    """Distances by a table, as DeBERTa's; its heads are repeated by a size that is read."""
    rows = net.split(net.places(net.table)[None])
    rows = rows.repeat(q.shape[0] // HEADS, 1, 1)
    where = (torch.arange(PLACES)[:, None] - torch.arange(PLACES)[None] + PLACES)[None]
    where = where.expand(q.shape[0], PLACES, PLACES)
    return torch.gather(q @ rows.transpose(-1, -2), -1, where)


def skewed(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    """Distances by a shift, as Transformer-XL's: an axis is taken apart askew."""
    rows = net.split(net.places(net.table)[None])
    found = (q @ rows.transpose(-1, -2)).reshape(-1, HEADS, 2 * PLACES, PLACES)[:, :, 1:]
    return found.reshape(-1, HEADS, PLACES, 2 * PLACES - 1)[..., :PLACES]


def at_places(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    """Keys at places that the input chooses."""
    return q @ q[:, :, x[0, :, 0].argsort()].transpose(-1, -2)


def larger(net: Heads, q: Tensor, x: Tensor) -> Tensor:
    scores = q @ q.transpose(-1, -2)
    return torch.min(scores, torch.max(scores.tanh(), scores * 2))


CASES: dict[str, Heads] = {
    "slopes": Heads(slopes),
    "slopes of merged heads": Heads(merged_slopes, merged=True),
    "zeros": Heads(zeros),
    "zeros of merged heads": Heads(merged_zeros, merged=True),
    "an expanded mask": Heads(expanded),
    "a mask of merged heads": Heads(merged_mask, merged=True),
    "a mask that is repeated": Heads(tiled),
    "a table that is looked up": Heads(looked_up, merged=True),
    "skewed scores": Heads(skewed),
    "places that are looked up": Heads(at_places),
    "the larger of two": Heads(larger),
}


@pytest.mark.parametrize("name", CASES)
def test_half_of_the_heads_goes(name: str):
    torch.manual_seed(0)
    net, x = CASES[name].double(), torch.randn(3, PLACES, WIDTH, dtype=torch.float64)
    program = fxprune.capture(net, (x,)).eval()
    masked = fxprune.prune(program, coupled(select={"op": "linear", "role": "weight"}))
    assert [(each.units, each.pruned) for each in masked.records[-1].layers] == [(HEADS, 2)]
    small = shrink(fxprune.finalize(masked))
    assert small.get_parameter("q.weight").shape == (WIDTH // 2, WIDTH)
    assert small.get_parameter("out.weight").shape == (WIDTH, WIDTH // 2)
    for batch in (3, 2):
        # Fewer addends are summed in another order.
        torch.testing.assert_close(small(x[:batch]), masked(x[:batch]), rtol=0, atol=1e-12)
    again = shrink(small)
    assert not again.captured.shrinks[-1].maps


def experts(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Rows by their expert, as mixtures of experts run."""
    order = x[:, 0].argsort()
    ends = torch.tensor([4, 8], dtype=torch.int32)
    hidden = F.grouped_mm(x[order], up.transpose(-1, -2), offs=ends)
    left, gate = hidden.chunk(2, -1)
    return F.grouped_mm(left * gate.relu(), down.transpose(-1, -2), offs=ends)


def test_experts_lose_channels():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = (nn.Parameter(whole(*n)) for n in ((2, 64, 16), (2, 16, 32)))

        def forward(self, x: Tensor) -> Tensor:
            return experts(x, self.up, self.down)

    def whole(*shape: int) -> Tensor:  # sums of whole numbers are exact
        return torch.randint(-2, 3, shape).to(torch.bfloat16)

    torch.manual_seed(0)
    x = whole(8, 16)
    program = fxprune.capture(Experts(), (x,), batch=None).eval()
    masked = fxprune.prune(program, coupled(select="*"))
    assert [(each.units, each.pruned) for each in masked.records[-1].layers] == [(32, 16)]
    small = shrink(fxprune.finalize(masked), certify=False)  # torch has no float64 for it
    assert small.get_parameter("up").shape == (2, 32, 16)
    assert small.get_parameter("down").shape == (2, 16, 16)
    assert torch.equal(small(x), masked(x))


def interleaved(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1, output_size=2 * x.shape[-1])


def triangle(x: Tensor) -> Tensor:
    return torch.stack([x, x.cos()], 1)[..., None].expand(-1, -1, -1, 2).permute(0, 2, 1, 3).tril()


def steps(x: Tensor) -> Tensor:
    return torch.stack([x, x.cos(), x.sin()], 1).diff(dim=1)


def renamed(x: Tensor) -> Tensor:
    return torch.multiply(torch.subtract(x, 0.5 * x).clip(-1, 1), torch.divide(x, 3).negative())


@pytest.mark.parametrize("between", [interleaved, triangle, steps, renamed])
def test_channels_pass(between: Callable[[Tensor], Tensor]):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 6)
            self.down = nn.Linear(between(torch.zeros(2, 6))[0].numel(), 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(between(self.up(x)).flatten(1))

    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(3, 4, dtype=torch.float64)
    program = fxprune.capture(net, (x,)).eval()
    masked = fxprune.prune(program, coupled(select="up.weight"))
    small = shrink(fxprune.finalize(masked))
    assert small.get_parameter("up.weight").shape == (3, 4)
    # Fewer addends are summed in another order.
    torch.testing.assert_close(small(x), masked(x), rtol=0, atol=1e-12)


def test_queries_that_share_keys_lose_heads():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDTH, WIDTH + 2 * SIZE), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).split((WIDTH, SIZE, SIZE), -1)
            q = q.view(*q.shape[:2], HEADS, SIZE).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k[:, None], v[:, None], enable_gqa=True)
            return self.out(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    net, x = Shared().double(), torch.randn(3, PLACES, WIDTH, dtype=torch.float64)
    program = fxprune.capture(net, (x,)).eval()
    masked = fxprune.prune(program, coupled(select={"op": "linear", "role": "weight"}))
    assert [(each.units, each.pruned) for each in masked.records[-1].layers] == [(HEADS, 2)]
    small = shrink(fxprune.finalize(masked))
    assert small.get_parameter("qkv.weight").shape == (WIDTH // 2 + 2 * SIZE, WIDTH)
    # Fewer addends are summed in another order.
    torch.testing.assert_close(small(x), masked(x), rtol=0, atol=1e-12)


def test_an_empty_part_of_channels_is_cut_with_the_others():
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            return self.down(torch.cat([y[..., :8].tanh(), y[..., 8:]], -1))

    net, x = Rotary().double(), torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        for parameter in net.up.parameters():
            parameter[::2] = 0
    program = fxprune.capture(net, (x,)).eval()
    small = shrink(program)
    torch.testing.assert_close(small(x), program(x), rtol=0, atol=1e-12)


def test_a_layer_without_channels_of_its_own_says_why_they_stay():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU())
    program = fxprune.capture(nn.Sequential(net, nn.Linear(6, 2)), (torch.randn(3, 4),))
    masked = fxprune.prune(program, coupled(select="*.weight"))
    refused = dict(masked.records[-1].refused)
    assert "a norm counts all channels" in str(refused["0.1.weight"])
