"""Drawn networks with drawn masks, to hold a shrunk Program to the masked one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune.functional
from fxprune.program.program import Program
from tests.models.shrink_steps import STEPS, step_of

MASKS = ("rows", "columns", "both", "entries", "all", "none")


@dataclass(frozen=True)
class Drawn:
    """A network as data.

    Args:
        steps: (kind, width) of each step between the first and the last layers.
        masks: how each parameter is masked, in turn.
        head: what follows the steps: "flat", "mean" or "images".
        finalized: whether the masks are folded in.
        seed: of weights and masks.
        stem: how many channels the first convolution gives.
    """

    steps: tuple[tuple[str, int], ...]
    masks: tuple[str, ...] = ("rows",)
    head: str = "mean"
    finalized: bool = True
    seed: int = 0
    stem: int = 6


class Net(nn.Module):
    """A convolution, the steps, and a linear layer."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        torch.manual_seed(drawn.seed)
        self.stem = nn.Conv2d(3, drawn.stem, 3, padding=1)
        self.head, channels, built = drawn.head, drawn.stem, list[nn.Module]()
        for kind, width in drawn.steps:
            made = step_of(kind, channels, width)
            if made is not None:
                built.append(made[0])
                channels = made[1]
        self.steps = nn.Sequential(*built)
        size = 1
        if self.head == "flat":
            self.double().eval()
            with torch.no_grad():
                size = self.steps(self.stem(torch.zeros(2, 3, 6, 6).double()))[0, 0].numel()
        self.last = nn.Linear(channels * size, 4) if self.head != "images" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.steps(self.stem(x))
        if self.head == "images":
            return x
        return self.last(x.flatten(1) if self.head == "flat" else x.mean((2, 3)))


def masked(kind: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw a mask of whole rows, whole columns, both, or single entries."""
    mask = torch.ones(shape, dtype=torch.float64)
    if kind == "all":
        return torch.zeros_like(mask)
    if kind == "entries":
        return torch.rand(shape, generator=generator).gt(0.5).double()
    if kind in ("rows", "both"):
        mask[torch.rand(shape[0], generator=generator) < 0.5] = 0
    if kind in ("columns", "both") and len(shape) > 1:
        mask[:, torch.rand(shape[1], generator=generator) < 0.5] = 0
    return mask


def captured(drawn: Drawn) -> Program:
    """Capture a drawn network in float64, masked or finalized, in eval mode."""
    model = Net(drawn).double().train()
    program = fxprune.capture(model, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    generator = torch.Generator().manual_seed(drawn.seed)
    names = [name for name in program.aliases if name not in program.captured.refused]
    for at, name in enumerate(names):
        kind = drawn.masks[at % len(drawn.masks)]
        if kind != "none":
            mask = masked(kind, program.parameter(name).shape, generator)
            fxprune.functional.custom_from_mask(program, name, mask)
    return (fxprune.finalize(program) if drawn.finalized else program).eval()


_step = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(1, 6))
drawn_nets = st.builds(
    Drawn,
    steps=st.lists(_step, min_size=1, max_size=5).map(tuple),
    masks=st.lists(st.sampled_from(MASKS[:1] * 4 + MASKS), min_size=1, max_size=5).map(tuple),
    head=st.sampled_from(["mean", "flat", "images"]),
    finalized=st.booleans(),
    seed=st.integers(0, 10_000),
)
