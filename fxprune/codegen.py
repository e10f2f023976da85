"""The code of a graph: the same operators, called through torch's faster bindings where there are.

`torch.ops.aten.linear.default` matches its arguments against a schema at every call, which costs a
small model as much as the arithmetic. torch's own functions reach the same kernel directly. The
graph itself keeps the operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.graph import CodeGen
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from fxprune.graphs import copy_graph
from fxprune.nesting import Nesting

__all__ = ["FAST", "NestedCodeGen", "fast_graph"]

aten = torch.ops.aten
_nn: Any = getattr(torch._C, "_nn")  # noqa: B009 - torch's stubs leave it out

# Functions that take the operator's arguments in the order of its schema.
FAST: dict[Any, Any] = {
    aten.adaptive_avg_pool2d.default: _nn.adaptive_avg_pool2d,
    aten.add.Tensor: torch.add,
    aten.add_.Tensor: torch.Tensor.add_,
    aten.batch_norm.default: torch.batch_norm,
    aten.bmm.default: torch.bmm,
    aten.cat.default: torch.cat,
    aten.contiguous.default: torch.Tensor.contiguous,
    aten.conv1d.default: torch.conv1d,
    aten.conv2d.default: torch.conv2d,
    aten.conv3d.default: torch.conv3d,
    aten.div.Tensor: torch.div,
    aten.dropout.default: torch.dropout,
    aten.embedding.default: torch.embedding,
    aten.expand.default: torch.Tensor.expand,
    aten.flatten.using_ints: torch.flatten,
    aten.gelu.default: _nn.gelu,
    aten.group_norm.default: torch.group_norm,
    aten.layer_norm.default: torch.layer_norm,
    aten.linear.default: _nn.linear,
    aten.matmul.default: torch.matmul,
    aten.max_pool2d.default: torch.max_pool2d,
    aten.mean.dim: torch.mean,
    aten.mul.Tensor: torch.mul,
    aten.permute.default: torch.permute,
    aten.relu.default: torch.relu,
    aten.relu_.default: torch.relu_,
    aten.reshape.default: torch.reshape,
    aten.scaled_dot_product_attention.default: _nn.scaled_dot_product_attention,
    aten.select.int: torch.select,
    aten.sigmoid.default: torch.sigmoid,
    aten.silu.default: _nn.silu,
    aten.softmax.int: torch.softmax,
    aten.squeeze.dim: torch.squeeze,
    aten.sub.Tensor: torch.sub,
    aten.sym_size.int: torch.Tensor.size,
    aten.tanh.default: torch.tanh,
    aten.transpose.int: torch.transpose,
    aten.unflatten.int: torch.unflatten,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.view.default: torch.Tensor.view,
}


class NestedCodeGen(CodeGen):
    """Tells fx.Interpreter how the flat graph's inputs and outputs are nested.

    Args:
        outputs: the nesting of the outputs.
    """

    def __init__(self, outputs: Nesting) -> None:
        super().__init__()
        self._outputs = outputs

    def process_inputs(self, *inputs: Any) -> Any:
        """Return the leaves of the arguments."""
        return pytree.arg_tree_leaves(*inputs)

    def process_outputs(self, outputs: Any) -> Any:
        """Return the outputs as forward does."""
        return self._outputs.unflatten(list(outputs))


def fast_graph(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a graph that computes the same through faster bindings.

    Args:
        graph: of aten operators; not changed.
    """
    fast = copy_graph(graph)
    for node in fast.nodes:
        if node.op == "call_function":
            node.target = FAST.get(node.target, node.target)
    _read_owners_once(fast)
    return fast


def _read_owners_once(graph: fx.Graph) -> None:
    """Read each module on the way to a tensor once: every step is a look-up that fails first."""
    owners: dict[str, Node] = {}
    for node in graph.find_nodes(op="get_attr"):
        path, _, name = str(node.target).rpartition(".")
        if not path:
            continue
        with graph.inserting_before(node):
            read = graph.call_function(getattr, (_owner(graph, path, owners), name))
        node.replace_all_uses_with(read)
        graph.erase_node(node)


def _owner(graph: fx.Graph, path: str, owners: dict[str, Node]) -> Node:
    if path not in owners:
        above, _, name = path.rpartition(".")
        if above:
            owners[path] = graph.call_function(getattr, (_owner(graph, above, owners), name))
        else:
            owners[path] = graph.create_node("get_attr", name)
    return owners[path]
