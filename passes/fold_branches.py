"""Fold constant branches: what joins them to the rest reads a constant instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.fx.node import Node

from fxprune.channels import OPEN, Flow, Value, shift_note
from fxprune.program import (
    VALUE,
    ShrinkRecord,
    count_batch,
    node_graph,
    ops,
    own_dtype,
    parameters,
    upstream,
    written,
)
from fxprune.rewrite import Facts, Rewrite, Rewriter

from .channels import DeadChannels

_JOINS = frozenset(("add", "sub", "mul", "div", "maximum", "minimum"))


@dataclass(frozen=True)
class FoldBranches(Rewrite):
    """Fold constant branches; it must run between `channels` and `shrink`, which needs new facts.

    A branch is folded where an operator joins it, entry by entry, to a tensor of the whole shape.
    """

    name: ClassVar[str] = "fold-branches"
    effect: ClassVar[str] = "constants"
    needs: ClassVar = (DeadChannels,)

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Fold them in every graph, and drop the tensors that nothing reads any more."""
        folded: list[str] = []
        notes: dict[str, None] = {}
        before = _tensors(rewriter)
        for flow in facts[DeadChannels].flows:
            for node, user in _joins(flow):
                _fold(rewriter, flow, node, user)
                folded.append(node.name)
            gone = _erase_dead(rewriter, flow) if folded else set[Node]()
            shifted = {node for node, _ in flow.shifts if node in gone}
            notes.update((shift_note(node), None) for node in shifted)
        if not folded:
            return
        masks = {f"{name}_mask" for name in parameters.masks(rewriter.program)}
        left = _tensors(rewriter)
        dropped = [name for name in before if name not in left]
        removed = [_plain(rewriter, name) for name in dropped if name not in masks]
        for name in dropped:
            rewriter.drop_tensor(name)
        record = ShrinkRecord(folded=tuple(folded), removed=tuple(removed), notes=tuple(notes))
        rewriter.record_shrink(record)


def _plain(rewriter: Rewriter, name: str) -> str:
    """Return a parameter's own name, without the suffix of one that is masked."""
    first = rewriter.program.captured.first
    plain = name.removesuffix("_orig")
    return plain if name not in first and plain in first else name


def _joins(flow: Flow) -> list[tuple[Node, Node]]:
    """Return constant nodes with the users that join them to values that are not constant."""
    constants = [
        node
        for node, value in flow.values.items()
        if isinstance(value, Value) and node.op == "call_function" and value.axes
        if not np.isnan(value.const).any()
    ]
    joins = [(n, user) for n in constants for user in list(n.users) if _is_join(flow, n, user)]
    view = node_graph(flow.graph.nodes) if joins else None
    return [join for join in joins if view is not None and _reads_parameters(flow, view, join[0])]


def _is_join(flow: Flow, node: Node, user: Node) -> bool:
    others = [arg for arg in user.args if isinstance(arg, Node) and arg is not node]
    value = flow.values.get(user)
    if user.op != "call_function" or len(others) != 1 or not isinstance(value, Value):
        return False
    if ops.canonical_name(user.target) not in _JOINS or written(user) is not None:
        return False
    same = others[0].meta.get(VALUE) == user.meta.get(VALUE)
    return same and user.args.count(node) == 1 and bool(np.isnan(value.const).any())


def _reads_parameters(flow: Flow, view: Any, node: Node) -> bool:
    """Tell whether a node is made of inputs, and of parameters that nothing else reads."""
    inside = upstream(view, [node])
    own = any(
        n.op == "get_attr" and n in flow.values and inside.issuperset(n.users) for n in inside
    )
    return own and any(n.op == "placeholder" for n in inside)


def _fold(rewriter: Rewriter, flow: Flow, node: Node, user: Node) -> None:
    value, name = flow.value(node), ops.canonical_name(user.target)
    other = next(arg for arg in user.args if isinstance(arg, Node) and arg is not node)
    adds_nothing = name == "add" or (name == "sub" and user.args[1] is node)
    if adds_nothing and not user.kwargs and not value.const.any():
        rewriter.replace_uses(user, other)
        return
    found = _tensor(value, _dtype(flow, node))
    made = rewriter.add_constant(f"{node.name}_constant", found, persistent=True)
    rewriter.replace_argument(user, node, rewriter.read(made, before=user))


def _dtype(flow: Flow, node: Node) -> torch.dtype:
    """Return a node's dtype: the noted one, or what became of it as the model went to another."""
    noted = node.meta[VALUE][1]
    follows = noted == flow.program.inputs.float_dtype
    return (own_dtype(flow.program) or noted) if follows else noted


def _tensor(value: Value, dtype: torch.dtype) -> torch.Tensor:
    """Return a constant value as a tensor, of size 1 along axes on which it does not depend."""
    const, at = value.const, 0
    sizes: list[int] = []
    whole: list[int] = []
    for axis in value.axes:
        dims = const.shape[at : at + len(axis)]
        at += len(axis)
        varies = any(dim > 1 for dim in dims)
        whole += [factor.size if varies and factor.size < OPEN else 1 for factor in axis]
        sizes.append(int(np.prod(whole[len(whole) - len(axis) :])))
    cells = np.broadcast_to(const, whole).reshape(sizes)
    return torch.from_numpy(np.array(cells)).to(dtype)


def _erase_dead(rewriter: Rewriter, flow: Flow) -> set[Node]:
    """Erase what nothing reads any more, and the counts of batch norms that are gone."""
    nodes = list(flow.graph.nodes)
    view = node_graph(nodes)
    counts = {node for node in nodes if node.target is count_batch}
    live = upstream(view, [n for n in nodes if not (_is_pure(flow, n) or n in counts)])
    reads = {str(node.target) for node in live if node.op == "get_attr"}
    live |= upstream(view, [node for node in counts if _norm_read(node) in reads])
    gone = [node for node in reversed(nodes) if node not in live]
    for node in gone:
        rewriter.erase(node)
    return set(gone)


def _is_pure(flow: Flow, node: Node) -> bool:
    """Tell whether a node does nothing but give a value that channels are followed through."""
    known = node in flow.values or ops.canonical_name(node.target) == "mul"
    return node.op == "get_attr" or (node.op == "call_function" and known and written(node) is None)


def _norm_read(node: Node) -> str:
    """Return the running mean that a batch norm reads whose batches a node counts."""
    counted: Any = node.args[0]
    return f"{str(counted.target).rpartition('.')[0]}.running_mean"


def _tensors(rewriter: Rewriter) -> dict[str, None]:
    """Return the names of the tensors that graphs read."""
    return {
        str(node.target): None
        for graph in rewriter.program.graphs.values()
        for node in graph.nodes
        if node.op == "get_attr" and rewriter.holds(str(node.target))
    }
