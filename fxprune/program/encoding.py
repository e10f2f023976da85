"""Graphs as plain data: to pickle, to compare and to print."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx.node import Node
from torch.nn import functional

from fxprune.errors import FormatError

_REF = "%"  # marks a reference to a node by name


def encode_graph(graph: fx.Graph) -> tuple[tuple[Any, ...], ...]:
    """Return the graph as a tuple with (op, target, args, kwargs, name, meta) for each node.

    torch's own pickling of a GraphModule traces its code again, which loses modes and fails on
    list arguments; this is structural.
    """
    return tuple(
        (
            node.op,
            _encode_target(node.target),
            _map(node.args, _node_to_ref),
            _map(node.kwargs, _node_to_ref),
            node.name,
            dict(node.meta),
        )
        for node in graph.nodes
    )


def decode_graph(data: tuple[tuple[Any, ...], ...]) -> fx.Graph:
    """Return the graph that `encode_graph` made `data` of."""
    graph = fx.Graph()
    named: dict[str, Node] = {}

    def restore(part: Any) -> Any:
        is_ref = isinstance(part, tuple) and len(part) == 2 and part[0] == _REF
        return named[part[1]] if is_ref else part

    for op, target, args, kwargs, name, meta in data:
        call = _decode_target(target), _map(args, restore), _map(kwargs, restore)
        node = graph.create_node(op, *call, name)
        node.meta = dict(meta)
        named[name] = node
    return graph


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Return a copy with the same names and meta, sharing nothing that can change."""
    copy = fx.Graph()
    copied: dict[Node, Node] = {}
    for node in graph.nodes:
        copied[node] = copy.node_copy(node, lambda n: copied[n])
    return copy


def fingerprint(
    graph: fx.Graph,
    *,
    skip: Callable[[Node], bool] = lambda node: False,
    transparent: Callable[[Node], bool] = lambda node: False,
) -> tuple[Any, ...]:
    """Return a value equal for two graphs that do the same, whatever their nodes are called.

    `skip` leaves out nodes that nothing kept reads; `transparent` takes nodes for their first
    argument.
    """
    numbers: dict[Node, int] = {}

    def number(part: Any) -> Any:
        return (_REF, numbers[part]) if isinstance(part, Node) else part

    lines: list[Any] = []
    for node in graph.nodes:
        if skip(node):
            continue
        if transparent(node):
            numbers[node] = numbers[node.args[0]]  # pyright: ignore[reportArgumentType]
            continue
        numbers[node] = len(lines)
        # Placeholders are numbered by their place; names may differ between two captures.
        target = None if node.op in ("placeholder", "output") else _encode_target(node.target)
        lines.append((node.op, target, _map(node.args, number), _map(node.kwargs, number)))
    return tuple(lines)


def graph_text(graph: fx.Graph) -> str:
    """Return the graph as text, one node a line, the same for equal graphs.

    Example:
        >>> graph = fx.Graph()
        >>> x = graph.placeholder("x")
        >>> y = graph.call_function(torch.ops.aten.relu.default, (x,))
        >>> _ = graph.output((y,))
        >>> print(graph_text(graph))
        %x = placeholder x
        %relu_default = aten.relu.default(%x)
        output (%relu_default)
    """
    return "\n".join(_node_line(node) for node in graph.nodes)


def _node_line(node: Node) -> str:
    if node.op == "output":
        return f"output {_text(node.args[0])}"
    by = f"  # {node.meta['fxprune.by']}" if "fxprune.by" in node.meta else ""
    if node.op in ("placeholder", "get_attr"):
        return f"%{node.name} = {node.op} {node.target}{by}"
    keyed = (f"{key}={_text(value)}" for key, value in node.kwargs.items())
    inside = ", ".join([*map(_text, node.args), *keyed])
    name = str(node.target)
    if not isinstance(node.target, (OpOverload, HigherOrderOperator, str)):
        name = getattr(node.target, "__name__", name)
    return f"%{node.name} = {name}({inside}){by}"


def _text(arg: Any) -> str:
    if isinstance(arg, Node):
        return f"%{arg.name}"
    if isinstance(arg, (list, tuple)):
        inside = ", ".join(map(_text, arg))
        return f"[{inside}]" if isinstance(arg, list) else f"({inside})"
    return repr(arg)


def _node_to_ref(part: Any) -> Any:
    return (_REF, part.name) if isinstance(part, Node) else part


def _map(arg: Any, fn: Callable[[Any], Any]) -> Any:
    """Rebuild nested lists, tuples, dicts and slices with `fn` on what is inside."""
    replaced = fn(arg)
    if replaced is not arg:
        return replaced
    if isinstance(arg, tuple):
        return tuple(_map(part, fn) for part in arg)
    if isinstance(arg, list):
        return [_map(part, fn) for part in arg]
    if isinstance(arg, dict):
        return {str(key): _map(part, fn) for key, part in arg.items()}  # pyright: ignore
    if isinstance(arg, slice):
        return slice(_map(arg.start, fn), _map(arg.stop, fn), _map(arg.step, fn))
    return arg


def _encode_target(target: Any) -> tuple[str, ...]:
    if isinstance(target, str):
        return ("name", target)
    if isinstance(target, OpOverload):
        return ("op", *target._schema.name.split("::"), target._overloadname)
    if isinstance(target, HigherOrderOperator):
        return ("hop", target._name)
    # Methods of tensors, as torch.Tensor.numel, are written in C and do not know their module.
    owner = getattr(target, "__objclass__", None)
    if owner is not None:
        return ("function", owner.__module__, f"{owner.__qualname__}.{target.__name__}")
    # Some functions of torch do not know under which name they are found: torch.add, max_pool2d.
    for module in (torch, functional):
        if getattr(module, target.__name__, None) is target:
            return ("function", module.__name__, target.__name__)
    return ("function", target.__module__, target.__qualname__)


def _decode_target(data: tuple[str, ...]) -> Any:
    kind, *parts = data
    if kind == "name":
        return parts[0]
    if kind == "op":
        namespace, name, overload = parts
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    if kind == "hop":
        return getattr(torch.ops.higher_order, parts[0])
    if kind == "function":
        found: Any = importlib.import_module(parts[0])
        for attribute in parts[1].split("."):
            found = getattr(found, attribute)
        return found
    raise FormatError(f"graph: unknown kind of target {kind!r}; the file is not one of fxprune's")
