"""Run the graphs of two Programs node by node and find the first value that differs."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from fxprune.differences import Holder
from fxprune.importing import PATH
from fxprune.program import Program, mode_of
from fxprune.reads import is_product, mask_read_of, parameter_of
from fxprune.snapshot import snapshot
from fxprune.tensors import masks

__all__ = ["Steps", "first_change", "first_difference", "recorded", "told"]

Steps = dict[str, tuple[Node, list[torch.Tensor]]]
"""The tensors that each node gave, keyed by what the node stands for, in the order run."""


def recorded(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    """Run the graph of a Program's mode and keep a copy of what every node gives.

    A parameter stands under its own name, whether it is read as it is or times its mask; the
    factors are left out. What else a node gives stands under the node's name.

    Args:
        program: a private copy; batch statistics change as in any run.
        args: positional inputs.
        kwargs: keyword inputs.
    """
    leaves = program.captured.inputs.flatten(args, kwargs)
    recorder = _Recorder(program, graph=program.graphs[mode_of(program)])
    # A graph may switch grad mode in a region; an error inside must not leave it switched.
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        recorder.run(*leaves, enable_io_processing=False)
    return recorder.steps


def first_difference(after: Steps, before: Steps, holder: Holder) -> Node | None:
    """Return the first node, as `after` ran, whose value differs from its namesake's.

    Args:
        after: what one Program's nodes gave.
        before: what the other's gave; nodes that only one of them has are left out.
        holder: tells what counts as a difference.
    """
    for key, (node, values) in after.items():
        if key in before and _differ(values, before[key][1], holder):
            return node
    return None


def first_change(after: Program, before: Program, mode: str) -> Node | None:
    """Return the first node of a graph that the other has not, or with other arguments.

    Args:
        after: whose node is returned; reads of parameters are looked through.
        before: another Program.
        mode: which graph.
    """
    if mode not in before.graphs:
        return None
    views = (snapshot(program).views[mode] for program in (after, before))
    lines, others = ({line.name: repr(line) for line in view.lines} for view in views)
    changed = next((name for name, line in lines.items() if others.get(name) != line), None)
    nodes = {node.name: node for node in after.graphs[mode].nodes}
    return None if changed is None else nodes[changed]


def told(program: Program, node: Node) -> str:
    """Say what a node is: the parameter it stands for, or its operator and module."""
    name = parameter_of(program, node)
    if name is not None:
        return f"{node.name}, the parameter {name!r}"
    place = f" in {node.meta[PATH]!r}" if node.meta.get(PATH) else ""
    return f"{node.name} ({node.target}{place})"


def _differ(after: list[torch.Tensor], before: list[torch.Tensor], holder: Holder) -> bool:
    if len(after) != len(before):
        return True
    pairs = [(a, b) for a, b in zip(after, before, strict=True) if a.shape == b.shape]
    # A pass that cuts channels changes shapes on purpose; what comes out of them must agree.
    if len(pairs) < len(after) and holder.bound is not None:
        return False
    return len(pairs) < len(after) or any(holder.leaves("", a, b).text for a, b in pairs)


class _Recorder(fx.Interpreter):
    def __init__(self, program: Program, graph: fx.Graph) -> None:
        super().__init__(program, graph=graph)
        self.program = program
        self.steps: Steps = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        key = self._key(n)
        if key is not None:
            leaves = [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]
            # Copies, since a later node may write into them.
            self.steps[key] = (n, [leaf.detach().clone().cpu() for leaf in leaves])
        return value

    def _key(self, node: Node) -> str | None:
        # A mask that differs where the parameter is zero changes nothing; the product tells.
        if node.op == "output" or mask_read_of(self.program, node) is not None:
            return None
        name = parameter_of(self.program, node)
        if name is None:
            return f"node {node.name}"
        masked = name in masks(self.program)
        return None if masked and not is_product(self.program, node) else f"parameter {name}"
