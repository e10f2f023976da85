"""The Python code of a graph, as a Program runs it: with fast bindings.

`torch.ops.aten.linear.default` matches its arguments against a schema at every call, which costs a
small model as much as the arithmetic. torch's own functions reach the same kernel directly. The
graph itself keeps the operators.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import fx
from torch.fx.graph import CodeGen
from torch.fx.graph_module import _forward_from_src
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from fxprune.program.inputs import Nesting

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
    """Tells fx.Interpreter how the flat graph's inputs and outputs are nested."""

    def __init__(self, outputs: Nesting) -> None:
        super().__init__()
        self._outputs = outputs

    def process_inputs(self, *inputs: Any) -> Any:
        """Return the leaves of the arguments."""
        return pytree.arg_tree_leaves(*inputs)

    def process_outputs(self, outputs: Any) -> Any:
        """Return the outputs as forward does."""
        return self._outputs.unflatten(list(outputs))


def compile_graph(graph: fx.Graph) -> tuple[Callable[..., Any], str]:
    """Return a graph of aten operators as a function `forward` of a Program, and its source.

    torch.fx writes a graph's code as its targets say it: it would need a copy with other targets,
    and reads each tensor through all the modules on the way, at every call.
    """
    source = _Source(graph)
    return _forward_from_src(source.text, source.known), source.text


class _Source:
    """The Python source of one graph, and the objects that it names.

    Values are freed after their last use. Each module on the way to a tensor is read once: every
    step is a look-up that fails first.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.known: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._taken = {node.name for node in graph.nodes}
        self._owners = {"": "self"}
        self._lines = [""]
        freed = _last_uses(graph)
        for node in graph.nodes:
            if node.op == "output":
                self._lines.append(f"return {self._text(node.args[0])}")
            elif node.op != "placeholder":
                drop = "".join(f"{name} = " for name in freed.get(node, ()))
                self._lines.append(f"{node.name} = {self._value(node)}{drop and f'; {drop}None'}")
        inputs = ", ".join(["self", *(node.name for node in graph.find_nodes(op="placeholder"))])
        self.text = f"def forward({inputs}):" + "\n    ".join(self._lines)

    def _value(self, node: Node) -> str:
        if node.op == "get_attr":
            return self._read(str(node.target))
        args = [*map(self._text, node.args)]
        args += (f"{key}={self._text(value)}" for key, value in node.kwargs.items())
        if node.op == "call_function":
            called = self._name(FAST.get(node.target, node.target))
        elif node.op == "call_module":
            called = self._read(str(node.target))
        else:
            called = f"{args.pop(0)}.{node.target}"
        return f"{called}({', '.join(args)})"

    def _read(self, path: str) -> str:
        above, _, name = path.rpartition(".")
        if above not in self._owners:
            read, self._owners[above] = self._read(above), self._unused(above)
            self._lines.append(f"{self._owners[above]} = {read}")
        plain = name.isidentifier() and not keyword.iskeyword(name)
        owner = self._owners[above]
        return f"{owner}.{name}" if plain else f"getattr({owner}, {name!r})"

    def _text(self, arg: Any) -> str:
        if isinstance(arg, Node):
            return arg.name
        if isinstance(arg, list):
            return f"[{', '.join(map(self._text, arg))}]"
        if isinstance(arg, tuple):
            return f"({''.join(f'{self._text(part)}, ' for part in arg)})"
        if isinstance(arg, dict):
            return f"{{{', '.join(f'{key!r}: {self._text(part)}' for key, part in arg.items())}}}"
        if isinstance(arg, slice):
            return f"slice({self._text(arg.start)}, {self._text(arg.stop)}, {self._text(arg.step)})"
        if arg is None or type(arg) in (bool, int, str) or (type(arg) is float and isfinite(arg)):
            return repr(arg)
        return self._name(arg)

    def _name(self, value: Any) -> str:
        """Return the global name of an operator or of a constant that has no literal."""
        if id(value) not in self._names:
            name = self._names[id(value)] = self._unused(getattr(value, "__name__", str(value)))
            self.known[name] = value
        return self._names[id(value)]

    def _unused(self, hint: str) -> str:
        name = "_" + re.sub(r"\W", "_", hint)
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _last_uses(graph: fx.Graph) -> dict[Node, list[str]]:
    """Return the names of the values that each node is the last to use."""
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        last[node] = node
        last.update(dict.fromkeys(node.all_input_nodes, node))
    names: dict[Node, list[str]] = {}
    for node, user in last.items():
        names.setdefault(user, []).append(node.name)
    return names
