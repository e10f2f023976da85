"""Graphs of a .fxp: nodes as plain data, and checks of all that ends up in generated code."""

from __future__ import annotations

import keyword
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Node

from fxprune.errors import FormatError
from fxprune.importing import PATH, VALUE
from fxprune.saved_document import SavedNode
from fxprune.saved_functions import has_method
from fxprune.saved_ops import check_call, check_names, function_of, name_of
from fxprune.saved_values import decode_dtype, decode_value, encode_dtype, encode_value

__all__ = ["decode_graph", "encode_graph"]

_BY = "fxprune.by"
_TRACE = "stack_trace"


def encode_graph(graph: fx.Graph, root: nn.Module, traces: dict[str, int]) -> list[SavedNode]:
    """Return a graph's nodes as data.

    Args:
        graph: of a Program.
        root: the Program.
        traces: numbers of stack traces; new ones are added.

    Raises:
        FormatError: names the node that calls what a .fxp cannot hold, or has such a constant.
    """
    saved: list[SavedNode] = []
    for node in graph.nodes:
        try:
            saved.append(_encode(node, root, traces))
        except FormatError as error:
            raise FormatError(f"node {node.name}: {error}") from error
    return saved


def _encode(node: Node, root: nn.Module, traces: dict[str, int]) -> SavedNode:
    if node.op == "call_module":
        kind = type(root.get_submodule(str(node.target))).__name__
        raise FormatError(
            f"it calls the layer {str(node.target)!r} ({kind}), whose code a .fxp cannot hold; "
            "capture the model with args="
        )
    target: str | None = str(node.target)
    if node.op in ("call_function", "output"):
        target = None if node.op == "output" else name_of(node.target)
    elif node.op == "call_method" and not has_method(target):
        raise FormatError(f"the method {target!r} is not among those that a .fxp may call")
    meta = node.meta
    trace = meta.get(_TRACE)
    shape, dtype = meta.get(VALUE, (None, None))
    if shape is not None and node.op == "get_attr":
        # A pass may have changed the tensor since capture.
        shape = _attribute(root, str(node.target)).shape
    return SavedNode(
        op=node.op,
        name=node.name,
        target=target,
        args=[encode_value(arg) for arg in node.args],
        kwargs={key: encode_value(value) for key, value in node.kwargs.items()},
        path=meta.get(PATH),
        shape=None if shape is None else list(shape),
        dtype=None if dtype is None else encode_dtype(dtype),
        trace=None if trace is None else traces.setdefault(trace, len(traces)),
        by=meta.get(_BY),
    )


def decode_graph(saved: list[SavedNode], root: nn.Module, traces: list[str]) -> fx.Graph:
    """Return the graph that `encode_graph` made `saved` of.

    Args:
        saved: from a file.
        root: the tree that the graph reads.
        traces: stack traces by number.

    Raises:
        FormatError: names the node that is at fault.
    """
    graph = fx.Graph()
    named: dict[str, Node] = {}

    def find(name: str) -> Node:
        if name not in named:
            raise FormatError(f"there is no node {name[:100]!a} before it")
        return named[name]

    for at, node in enumerate(saved):
        try:
            if at and saved[at - 1].op == "output":
                raise FormatError("it stands after the output")
            _add(graph, node, root, traces, find)
        except FormatError as error:
            raise FormatError(f"node {at} ({node.name[:100]!a}): {error}") from error
        named[node.name] = next(iter(reversed(graph.nodes)))
    if not saved or saved[-1].op != "output":
        raise FormatError("the last node is no output")
    return graph


def _add(
    graph: fx.Graph,
    saved: SavedNode,
    root: nn.Module,
    traces: list[str],
    find: Callable[[str], Node],
) -> None:
    args = tuple(decode_value(arg, find) for arg in saved.args)
    kwargs = {key: decode_value(value, find) for key, value in saved.kwargs.items()}
    target = _target(saved, root, args, kwargs)
    _check_identifier(saved.name)
    node = graph.create_node(saved.op, target, args, kwargs, saved.name)
    # fx gives another name to what stands twice, or is no name of its own graphs.
    if node.name != saved.name:
        raise FormatError("this name stands twice, or is none that a node may have")
    node.meta = _meta(saved, root, traces)


def _target(
    saved: SavedNode, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    target = saved.target or ""
    if saved.op == "call_function":
        function = function_of(target)
        check_call(function, args, kwargs)
        return function
    if saved.op == "call_method":
        if not has_method(target) or not args or not isinstance(args[0], Node):
            raise FormatError(f"{target[:100]!a} is not among the methods that a .fxp may call")
        check_names(kwargs)
        return target
    if saved.op == "output":
        if len(args) != 1 or kwargs or target or not isinstance(args[0], (tuple, list)):
            raise FormatError("an output has one tuple, and no target")
        return "output"
    if args or kwargs:
        raise FormatError(f"a {saved.op[:40]} has no arguments")
    if saved.op == "placeholder":
        _check_identifier(target)
        return target
    if saved.op == "get_attr":
        _attribute(root, target)
        return target
    raise FormatError(f"there is no kind of node {saved.op[:40]!a}")


def _meta(saved: SavedNode, root: nn.Module, traces: list[str]) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if saved.path is not None:
        meta[PATH] = saved.path
    if saved.trace is not None:
        if saved.trace >= len(traces):
            raise FormatError(f"there is no stack trace {saved.trace}")
        meta[_TRACE] = traces[saved.trace]
    if (saved.shape is None) is not (saved.dtype is None):
        raise FormatError("it has a shape without a dtype, or a dtype without a shape")
    if saved.shape is not None and saved.dtype is not None:
        shape = tuple(saved.shape)
        meta[VALUE] = (shape, decode_dtype(saved.dtype))
        if saved.op == "get_attr" and shape != tuple(_attribute(root, saved.target or "").shape):
            raise FormatError(f"it says {shape}, and the tensor has another shape")
    if saved.by is not None:
        meta[_BY] = saved.by
    return meta


def _attribute(root: nn.Module, target: str) -> Any:
    """Return what a graph reads: a tensor of the tree, a training flag, or the device."""
    path, _, name = target.rpartition(".")
    owner: Any = root
    for part in path.split(".") if path else ():
        owner = owner._modules.get(part)
        if owner is None:
            raise FormatError(f"there is no module {path[:200]!a}")
    if name == "training":
        return owner.training
    if target == "device":
        return torch.device("cpu")
    tensor = owner._parameters.get(name)
    tensor = owner._buffers.get(name) if tensor is None else tensor
    if tensor is None:
        raise FormatError(f"there is no tensor {target[:200]!a}")
    return tensor


def _check_identifier(name: str) -> None:
    plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    if not plain or name == "self" or name.startswith("__"):
        raise FormatError(f"{name[:100]!a} is no name for a variable")
