"""Live devices: factory calls follow the Program when it is moved."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.node import Node

from fxprune import ops
from fxprune.program import Program
from fxprune.rewriter import Rewriter

__all__ = ["live_devices"]

aten = torch.ops.aten


def live_devices(program: Program) -> None:
    """Replace the device that capture baked into calls by a read of the Program's device.

    The zeros that a recurrent layer starts from follow their input's dtype as well, as torch's
    layers make them. A model on several devices is left as it is.

    Args:
        program: as captured; edited in place, and not compiled.
    """
    tensors = (*program.parameters(), *program.buffers())
    devices = {tensor.device for tensor in tensors} or {torch.device("cpu")}
    if len(devices) > 1:
        return
    rewriter = Rewriter(program, "live-devices")
    baked = devices.pop()
    for graph in program.graphs.values():
        for node in list(graph.nodes):
            if node.op == "call_function":
                _start_from_input(rewriter, node)
        for node in list(graph.nodes):
            if node.op == "call_function":
                _read_device(rewriter, node, baked)
    rewriter.check()


def _read_device(rewriter: Rewriter, node: Node, baked: torch.device) -> None:
    for name, value in node.kwargs.items():
        if isinstance(value, torch.device) and value == baked:
            rewriter.set_keyword(node, name, rewriter.read("device", before=node))
    for position, value in enumerate(node.args):
        if isinstance(value, torch.device) and value == baked:
            rewriter.set_argument(node, position, rewriter.read("device", before=node))


def _start_from_input(rewriter: Rewriter, node: Node) -> None:
    """Make the zeros a recurrent layer starts from out of its input."""
    if ops.canonical_name(node.target) not in ops.RECURRENT:
        return
    source: Any = node.args[0]
    states = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    for state in states:
        if isinstance(state, Node) and state.target is aten.zeros.default:
            before = state.next
            if not _stands_before(source, state):
                before = node
            zeros = rewriter.call(aten.new_zeros.default, (source, state.args[0]), before=before)
            zeros.meta = {**state.meta, **zeros.meta}
            rewriter.replace_uses(state, zeros)
            rewriter.erase(state)


def _stands_before(node: Node, other: Node) -> bool:
    return node < other
