"""The `forward` of a Program's source: a graph as straight-line code."""

from __future__ import annotations

import math
import operator
import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx.graph import magic_methods
from torch.fx.node import Node, map_aggregate
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxprune.codegen import FAST
from fxprune.errors import FormatError
from fxprune.flat_regions import enter_autocast, exit_autocast
from fxprune.importing import PATH
from fxprune.inputs import InputSpec
from fxprune.modes import count_batch
from fxprune.program import Program
from fxprune.recipe_errors import plain
from fxprune.source_values import Source, as_source, read_text

__all__ = ["body_lines"]

_WIDTH = 84
_TAKEN = frozenset({"F", "math", "nn", "self", "torch"})
_MAGIC = magic_methods | {"not_": "not {}", "is_": "{} is {}"}
_TARGETS: dict[Any, Any] = {**FAST, torch._C._set_grad_enabled: torch.set_grad_enabled}
_nn: Any = getattr(torch._C, "_nn")  # noqa: B009 - torch's stubs leave it out


def body_lines(program: Program, mode: str) -> list[str]:
    """Return the statements of forward, for the arguments that the Program's forward takes.

    Args:
        program: any Program.
        mode: which of its graphs.

    Raises:
        FormatError: names the node whose call or constant has no source that needs torch alone.
    """
    lines = [*_checks(program.inputs), *_Body(program, mode).lines()]
    nodes = program.graphs[mode].find_nodes(
        op="call_function", target=torch._C._set_grad_enabled, sort=False
    )
    if not nodes:
        return lines
    # As in a Program: an error in a region leaves no grad mode behind.
    guard = "with torch.set_grad_enabled(torch.is_grad_enabled()):"
    return [guard, *(f"    {line}" if line else line for line in lines)]


def _places(inputs: InputSpec) -> list[Source]:
    """Return how each leaf of the arguments is read."""
    try:
        leaves, _ = pytree.tree_flatten_with_path(inputs.nesting.skeleton)
    except ValueError as error:
        raise FormatError(f"the arguments have no source that needs torch alone: {error}") from None
    places: list[Source] = []
    for path, _ in leaves:
        keys: Any = path
        group, first, *inner = keys
        place = first.key if group.idx else inputs.names[first.idx]
        for key in inner:
            if isinstance(key, pytree.GetAttrKey):
                place += f".{key.name}"
            else:
                at = key.key if isinstance(key, pytree.MappingKey) else key.idx
                place += f"[{as_source(at)!r}]"
        places.append(Source(place))
    return places


def _checks(inputs: InputSpec) -> Iterator[str]:
    """Yield the checks of arguments that capture fixed."""
    for leaf, place in zip(inputs.inputs, _places(inputs), strict=True):
        if leaf.dtype is None and inputs.drawable and leaf.constant == leaf.constant:
            fixed = repr(as_source(leaf.constant))
            yield f"if {place} {'is not' if leaf.constant is None else '!='} {fixed}:"
            message = as_source(f"{leaf.name} is fixed to {fixed} in this graph")
            yield f"    raise ValueError({message!r})"


class _Body:
    def __init__(self, program: Program, mode: str) -> None:
        self.program = program
        self.graph = program.graphs[mode]
        self.outputs = program.captured.outputs[mode].tree
        arguments = [*program.inputs.names, *program.inputs.keywords]
        if hidden := [name for name in arguments if name in _TAKEN]:
            raise FormatError(f"the argument {hidden[0]!r} hides what the source needs; rename it")
        self.used = {*_TAKEN, *arguments}
        self.places = iter(_places(program.inputs))
        self.values: dict[Node, Source] = {}
        self.regions: list[Node] = []
        self.path = ""

    def lines(self) -> Iterator[str]:
        for node in self.graph.nodes:
            try:
                yield from self._statement(node)
            except FormatError as error:
                raise FormatError(f"node {node.name}: {error}") from error

    def _statement(self, node: Node) -> Iterator[str]:
        if node.op == "placeholder":
            self.values[node] = next(self.places)
        elif node.op == "get_attr":
            path = str(node.target)
            read = "_device(self)" if path == "device" else read_text(path, self.program)
            self.values[node] = Source(read)
        elif node.op == "output":
            yield f"return {_nested(self.outputs, iter(self._write(node.args[0])))!r}"
        elif node.users or node.target is not operator.getitem:
            indent = "    " * len(self.regions)
            path = _path(node, self.path)
            if path != self.path:
                self.path = path
                yield ""
                yield f"{indent}# {plain(path) or 'the model itself'}"
            yield from (f"{indent}{line}" for line in self._call(node))

    def _call(self, node: Node) -> list[str]:
        args, kwargs = self._write(node.args), self._write(node.kwargs)
        if node.target is count_batch:
            return [f"if {args[1]}:", f"    {args[0]}.add_(1)"]
        if node.target is enter_autocast:
            self.regions.append(node)
            self.values[node] = Source(node.name)
            return [f"with torch.autocast({args[0]}, dtype={args[1]}, enabled={args[2]}):"]
        if node.target is exit_autocast:
            if not self.regions or self.regions.pop() is not node.args[0]:
                raise FormatError("regions of autocast overlap")
            return []
        text = _expression(node, list(map(repr, args)), kwargs)
        if not node.users:
            return _wrapped(text)
        name = node.name
        while name in self.used:
            name = f"{name}_"
        self.used.add(name)
        self.values[node] = Source(name)
        return _wrapped(f"{name} = {text}")

    def _write(self, value: Any) -> Any:
        return map_aggregate(
            value, lambda part: self.values[part] if isinstance(part, Node) else as_source(part)
        )


def _expression(node: Node, args: list[str], kwargs: dict[str, Any]) -> str:
    """Return a call of a function or a method."""
    inside = [*args, *(f"{key}={value!r}" for key, value in kwargs.items())]
    target: Any = _TARGETS.get(node.target, node.target)
    if node.op == "call_method":
        return f"{args[0]}.{target}({', '.join(inside[1:])})"
    if node.op != "call_function":
        raise FormatError(f"a {node.op} has no source that needs torch alone")
    if target is getattr:
        return f"{args[0]}.{node.args[1]}"
    name = str(getattr(target, "__name__", ""))
    if getattr(operator, name, None) is target and name in _MAGIC:
        return _MAGIC[name].format(*args)
    if isinstance(target, OpOverload):
        if target.namespace != "aten":
            raise FormatError(f"{target} is no operator of torch itself")
        return f"torch.ops.{target}({', '.join(inside)})"
    if getattr(_nn, name, None) is target:
        target = getattr(functional, name, None)
    for text, owner in (("torch", torch), ("F", functional), ("math", math)):
        if getattr(owner, name, None) is target:
            return f"{text}.{name}({', '.join(inside)})"
    if getattr(torch.Tensor, name, None) is target:
        return f"{args[0]}.{name}({', '.join(inside[1:])})"
    raise FormatError(f"{node.target} is no function of torch itself")


def _path(node: Node, before: str) -> str:
    """Return the module that a node belongs to; one that a pass made, to that of its user."""
    if PATH in node.meta:
        return str(node.meta[PATH])
    if node.target is count_batch:
        counter: Any = node.args[0]
        return str(counter.target).rpartition(".")[0]
    return next((str(user.meta[PATH]) for user in node.users if PATH in user.meta), before)


def _nested(tree: Any, leaves: Iterator[Any]) -> Any:
    """Nest the leaves of the outputs: named tuples become tuples, classes with names dicts."""
    if tree.is_leaf():
        return next(leaves)
    parts = [_nested(child, leaves) for child in tree.children()]
    names: Any = tree.context
    if tree.type is list:
        return parts
    if tree.type is tuple or hasattr(names, "_fields"):
        return tuple(parts)
    if isinstance(names, list) and len(names) == len(parts):  # pyright: ignore
        return dict(zip(map(as_source, names), parts, strict=True))  # pyright: ignore
    raise FormatError(f"a {tree.type.__name__} has no source that needs torch alone")


def _wrapped(line: str) -> list[str]:
    """Break a long call between its arguments."""
    if len(line) <= _WIDTH or not line.endswith(")") or "'" in line or '"' in line:
        return [line]
    head, _, inside = line.partition("(")
    body = textwrap.wrap(inside[:-1], _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"{head}(", *(f"    {part}" for part in body), ")"]
