"""Coupled pruning of architectures from outside: all that is masked is cut, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.compiler.shrinking import shrink
from tests.bench.models_vision import densenet121, mobilenet_v2, resnet18
from tests.models.coupled_nets import coupled
from tests.tools.profiles import thorough_but

transformers: Any = pytest.importorskip("transformers")

IDS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
WIDTHS: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}


class Of(nn.Module):
    """A model, and what is taken of its output."""

    def __init__(self, model: nn.Module, take: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.take = model, take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(self.model(x))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a join with what was before."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.norm = nn.ConvTranspose2d(16, 8, 2, 2), nn.BatchNorm2d(8)
        self.last, self.out = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.down1(x))
        second = F.relu(self.down2(F.max_pool2d(first, 2)))
        joined = torch.cat([first, self.norm(self.up(second))], 1)
        return self.out(F.relu(self.last(joined)))


class ConvLSTM(nn.Module):
    """A hidden state that begins as zeros, and meets nothing but itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out = nn.Conv2d(3 + 6, 4 * 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, frames: Tensor) -> Tensor:
        hidden = frames.new_zeros(frames.shape[0], 6, 4, 4)
        cell = torch.zeros_like(hidden)
        for x in frames.unbind(1):
            i, f, o, g = self.gates(torch.cat([x, hidden], 1)).split(6, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return self.out(hidden)


class Windows(nn.Module):
    """Attention with a table of position biases, one a head, which no rule has to select."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.table = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("index", torch.arange(25).remainder(9))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].view(5, 5, 4).permute(2, 0, 1).unsqueeze(0)
        mixed = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(n, length, width))


class SelectiveKernel(nn.Module):
    """Branches joined, told apart by a view, weighed by a softmax and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.weigh, self.out = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.a(x), self.b(x)], 1).view(x.shape[0], 2, 8, 4, 4)
        weights = self.weigh(both.sum(1).mean((2, 3), keepdim=True)).view(x.shape[0], 2, 8, 1, 1)
        return self.out((both * weights.softmax(1)).sum(1))


class Capsules(nn.Module):
    """Vectors times matrices of their own, summed over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = nn.Conv2d(3, 16, 1)
        self.matrices = nn.Parameter(torch.randn(1, 4, 6, 4))
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.primary(x).mean((2, 3)).view(x.shape[0], 4, 4, 1)
        return self.out((self.matrices @ vectors).squeeze(-1).sum(1))


def llama(heads: int) -> nn.Module:
    config = transformers.LlamaConfig(**WIDTHS, num_key_value_heads=heads, use_cache=False)
    return Of(transformers.LlamaForCausalLM(config), lambda found: found.logits)


def bert() -> nn.Module:
    model = transformers.BertModel(transformers.BertConfig(**WIDTHS), add_pooling_layer=False)
    return Of(model, lambda found: found.last_hidden_state)


def deberta() -> nn.Module:
    config = transformers.DebertaV2Config(
        **WIDTHS,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=4,
        max_relative_positions=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    )
    return Of(transformers.DebertaV2Model(config), lambda found: found.last_hidden_state)


def bloom() -> nn.Module:
    config = transformers.BloomConfig(
        vocab_size=50, hidden_size=32, n_layer=1, n_head=4, use_cache=False
    )
    return Of(transformers.BloomForCausalLM(config), lambda found: found.logits)


def bigcode() -> nn.Module:
    config = transformers.GPTBigCodeConfig(
        vocab_size=50, n_embd=32, n_layer=1, n_head=4, n_inner=24, use_cache=False
    )
    return Of(transformers.GPTBigCodeForCausalLM(config), lambda found: found.logits)


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, tuple[int, ...]]] = {
    "unet": (UNet, torch.randn(2, 3, 8, 8), (8, 16, 8, 8)),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(32, 4, 24, batch_first=True),
        torch.randn(2, 5, 32),
        (4, 24),
    ),
    "hidden state": (ConvLSTM, torch.randn(2, 2, 3, 4, 4), (6,)),
    "position biases": (Windows, torch.randn(2, 5, 32), (4,)),
    "selective kernel": (SelectiveKernel, torch.randn(2, 3, 4, 4), (8,)),
    "capsules": (Capsules, torch.randn(2, 3, 4, 4), (4,)),
    "bert": (bert, IDS, (4, 24)),
    "llama": (lambda: llama(4), IDS, (4, 24)),
    "llama with shared keys": (lambda: llama(2), IDS, (2, 24)),
    "heads with slopes": (bloom, IDS, (4, 128)),
    "heads with distances": (deberta, IDS, (4, 24)),
    "one key for all heads": (bigcode, IDS, (4, 24)),
}
DEAR = {"bert", "llama", "heads with distances", "one key for all heads"}


@pytest.mark.parametrize("name", thorough_but(MODELS.keys() - DEAR, MODELS))
def test_half_of_each_layer_goes_and_the_function_stays(name: str):
    torch.manual_seed(0)
    build, x, units = MODELS[name]
    x = x.double() if x.is_floating_point() else x
    program = fxprune.capture(build().double(), (x,)).eval()
    select = {"op": ["conv2d", "conv_transpose2d", "linear"], "role": "weight"}
    masked = fxprune.prune(program, coupled(select=select))
    found = masked.records[-1].layers
    assert tuple(layer.units for layer in found) == units
    assert all(layer.pruned == (layer.units or 0) // 2 for layer in found)
    small = shrink(fxprune.finalize(masked))
    zeros = sum(int((mask == 0).sum()) for mask in masked.masks.values())
    before, after = (sum(p.numel() for p in net.parameters()) for net in (program, small))
    assert after == before - zeros
    # Fewer addends are summed in another order.
    torch.testing.assert_close(small(x), masked(x), rtol=0, atol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("build", "share"), [(resnet18, 0.251), (mobilenet_v2, 0.26), (densenet121, 0.251)]
)
def test_half_of_the_channels_is_a_quarter_of_the_convolutions(
    build: Callable[[], nn.Module], share: float
):
    torch.manual_seed(0)
    program = fxprune.capture(build().double(), (torch.randn(2, 3, 32, 32).double(),)).eval()
    masked = fxprune.prune(program, coupled())
    small = shrink(fxprune.finalize(masked))
    before, after = (
        sum(p.numel() for p in net.parameters() if p.dim() == 4) for net in (program, small)
    )
    assert after / before < share
    x = torch.randn(1, 3, 32, 32).double()
    # Fewer addends are summed in another order.
    torch.testing.assert_close(small(x), masked(x), rtol=0, atol=1e-9)
