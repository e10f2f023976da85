"""How analysis and cut grow with the width and the depth of a residual net."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fxprune
from tests.bench.shrink_times import RECIPE, split_cut, timed

FACTORS = (1, 2, 4)
WIDTH, DEPTH = 64, 8


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class _Net(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def residual_net(width: int, depth: int) -> nn.Module:
    """Build a residual net of so many blocks."""
    return _Net(width, depth)


@dataclass(frozen=True)
class Growth:
    """One residual net.

    Args:
        width: channels of each layer.
        depth: blocks.
        parameters: how many numbers it has.
        nodes: of its graph.
        masks: seconds of process time of coupled masks.
        cut: of analysis and cut.
    """

    width: int
    depth: int
    parameters: int
    nodes: int
    masks: float
    cut: float


def growths(rounds: int) -> list[Growth]:
    """Time nets that are wider, then nets that are deeper, by the same factors.

    Args:
        rounds: how often each is timed; the medians count.
    """
    sizes = [(WIDTH * by, DEPTH) for by in FACTORS] + [(WIDTH, DEPTH * by) for by in FACTORS]
    return [_growth(width, depth, rounds) for width, depth in sizes]


def _growth(width: int, depth: int, rounds: int) -> Growth:
    torch.manual_seed(0)
    model = residual_net(width, depth).eval()
    program = fxprune.capture(model, (torch.randn(2, 3, 8, 8),)).eval()
    final = fxprune.finalize(fxprune.prune(program, RECIPE))
    masks = [timed(lambda: fxprune.prune(program, RECIPE)) for _ in range(rounds)]
    cuts = [sum(split_cut(final)) for _ in range(rounds)]
    count = sum(p.numel() for p in model.parameters())
    nodes = len(program.graph.nodes)
    return Growth(width, depth, count, nodes, statistics.median(masks), statistics.median(cuts))
