"""What the benchmark measures: two models, each dense, hooked, masked and final (finalized)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

import fxprune
from fxprune.support.equality import same_bits

FORMS = ("dense", "hooked", "masked", "final")
RECIPE = {
    "rule": [
        {
            "select": {"op": ["conv2d", "linear"], "role": "weight"},
            "method": "l1_unstructured",
            "amount": 0.5,
        }
    ]
}


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a skip."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Identity()
        if inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.skip(x))


class ResNet(nn.Module):
    """ResNet-18 as it is used on images of 32 x 32: a 3x3 stem, no pooling before the blocks."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            stride = 1 if inputs == outputs else 2
            blocks += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class Layer(nn.Module):
    """An encoder layer, norms first, whose every weight is read by the module that owns it.

    `nn.TransformerEncoderLayer` is not used: hooks on its `out_proj` never fire, and in eval mode
    its dense form alone takes a fused path, so that its forms would not compute the same.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, 2)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """A transformer encoder over vectors, with a classifier on their mean."""

    def __init__(self, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(x)).mean(1))


# The model and the shape of one input.
MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "residual CNN": (ResNet, (3, 32, 32)),
    "transformer": (Transformer, (64, 128)),
}


@dataclass(frozen=True)
class Forms:
    """One model in its four forms, in eval mode.

    Args:
        modules: dense, hooked by torch.nn.utils.prune, the masked and the finalized Program.
        shape: of one input, without the batch.
    """

    modules: dict[str, nn.Module]
    shape: tuple[int, ...]

    def inputs(self, batch: int) -> Tensor:
        """Draw a batch of inputs."""
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(batch))


def forms_of(name: str, **sizes: int) -> Forms:
    """Build the four forms of a model, and check that the pruned three compute the same.

    Args:
        name: of `MODELS`.
        sizes: arguments of the model.

    Raises:
        RuntimeError: their outputs differ, so that times would compare nothing.
    """
    kind, shape = MODELS[name]
    torch.manual_seed(0)
    dense = kind(**sizes).eval()
    masked = fxprune.prune(dense, RECIPE, args=(torch.randn(2, *shape),))
    hooked: Any = copy.deepcopy(dense)
    for parameter in masked.masks:
        owner, _, attribute = parameter.rpartition(".")
        torch_prune.l1_unstructured(hooked.get_submodule(owner), attribute, amount=0.5)
    final = fxprune.finalize(masked)
    forms = Forms(dict(zip(FORMS, (dense, hooked, masked, final), strict=True)), shape)
    x = forms.inputs(2)
    # With gradients on: without them torch may choose another matrix product for the finalized.
    outputs = [forms.modules[form](x) for form in FORMS[1:]]
    if not all(same_bits(outputs[0], other) for other in outputs[1:]):
        raise RuntimeError(f"the pruned forms of {name} differ; run the tests before the benchmark")
    for module in forms.modules.values():
        _lay_out(module)
    return forms


def _lay_out(module: nn.Module) -> None:
    """Give a module's tensors fresh memory, one after another.

    Where tensors lie, and so how they share the caches, moves times by up to 4 %; left as they are
    built, that would be counted for or against a form.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        tensor.data = tensor.data.clone()
