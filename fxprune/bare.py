"""A Program around one tensor, so that the passes can mask what belongs to no model."""

from __future__ import annotations

import torch
from torch import fx, nn

from fxprune.inputs import InputSpec
from fxprune.nesting import Nesting
from fxprune.program import BOTH, Captured, Program

__all__ = ["bare_program"]


def bare_program(t: torch.Tensor) -> Program:
    """Return a Program that holds one parameter `t` and computes nothing."""
    tree = nn.Module()
    tree.register_parameter("t", nn.Parameter(t.detach(), requires_grad=False))
    graph = fx.Graph()
    graph.output(())
    captured = Captured(
        inputs=InputSpec((), Nesting(((), {})), (), ()),
        outputs={BOTH: Nesting(())},
        first={"t": "t"},
        kind="Tensor",
        frozen={True: {}, False: {}},
    )
    return Program.assemble(tree, {BOTH: graph}, captured)
