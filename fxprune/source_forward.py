"""The `forward` of a Program's source: a graph as straight-line code."""

from __future__ import annotations

import operator
import textwrap
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from fxprune.errors import FormatError
from fxprune.flat_regions import enter_autocast, exit_autocast
from fxprune.importing import PATH
from fxprune.modes import count_batch
from fxprune.nesting import Nesting
from fxprune.program import Program
from fxprune.recipe_errors import plain
from fxprune.source_values import call_text, quoted, read_text, value_text

__all__ = ["body_lines"]

_WIDTH = 100
_TAKEN = frozenset({"F", "math", "nn", "self", "torch"})


def body_lines(program: Program, mode: str) -> list[str]:
    """Return the statements of forward, for the arguments that the Program's forward takes.

    Args:
        program: any Program.
        mode: which of its graphs.

    Raises:
        FormatError: names the node whose call or constant has no source that needs torch alone.
    """
    graph = program.graphs[mode]
    lines = list(_Body(program, graph, program.captured.outputs[mode]).lines())
    if not any(node.target is torch._C._set_grad_enabled for node in graph.nodes):
        return lines
    # As in a Program: an error in a region leaves no grad mode behind.
    guard = "with torch.set_grad_enabled(torch.is_grad_enabled()):"
    return [guard, *(f"    {line}" if line else line for line in lines)]


class _Body:
    def __init__(self, program: Program, graph: fx.Graph, outputs: Nesting) -> None:
        self.program = program
        self.graph = graph
        self.inputs = program.inputs
        self.outputs = outputs
        self.texts: dict[Node, str] = {}
        self.used: set[str] = set(_TAKEN)
        self.open: list[Node] = []
        self.path = ""

    def lines(self) -> Iterator[str]:
        yield from self._arguments()
        for node in self.graph.nodes:
            try:
                yield from self._statement(node)
            except FormatError as error:
                raise FormatError(f"node {node.name}: {error}") from error

    def _arguments(self) -> Iterator[str]:
        """Name the leaves of the arguments, and check those that are fixed."""
        args, kwargs = self.inputs.nesting.skeleton
        named = [*zip(self.inputs.names, args, strict=True), *kwargs.items()]
        places = [place for name, part in named for place in _leaves(name, part)]
        placeholders = self.graph.find_nodes(op="placeholder")
        hidden = [name for name, _ in named if name in _TAKEN]
        if hidden:
            raise FormatError(f"the argument {hidden[0]!r} hides what the source needs; rename it")
        self.used.update(name for name, _ in named)
        for node, leaf, place in zip(placeholders, self.inputs.inputs, places, strict=True):
            self.texts[node] = place
            if leaf.dtype is None and self.inputs.drawable and leaf.constant == leaf.constant:
                yield from _check(leaf.name, place, leaf.constant)
            elif place not in self.inputs.names and not place.isidentifier() and node.users:
                self.texts[node] = self._fresh(node.name)
                yield f"{self.texts[node]} = {place}"

    def _statement(self, node: Node) -> Iterator[str]:
        if node.op == "placeholder":
            return
        if node.op == "get_attr":
            self.texts[node] = self._read(str(node.target))
            return
        indent = "    " * len(self.open)
        if node.op == "output":
            leaves = [self._write(leaf) for leaf in node.args[0]]  # pyright: ignore
            yield f"return {_nested(self.outputs, leaves)}"
            return
        path = _path(node, self.path)
        if path != self.path:
            self.path = path
            yield ""
            yield f"{indent}# {plain(path) or 'the model itself'}"
        if node.target is exit_autocast:
            self._close(node)
            return
        yield from (f"{indent}{line}" for line in self._call(node))

    def _call(self, node: Node) -> list[str]:
        if node.op not in ("call_function", "call_method"):
            raise FormatError(f"a {node.op} has no source that needs torch alone")
        if node.target is count_batch:
            counter, flag = map(self._write, node.args)
            return [f"if {flag}:", f"    {counter}.add_(1)"]
        if node.target is torch._C._set_grad_enabled:
            return [f"torch.set_grad_enabled({self._write(node.args[0])})"]
        if node.target is enter_autocast:
            device, dtype, enabled = map(self._write, node.args)
            self.open.append(node)
            return [f"with torch.autocast({device}, dtype={dtype}, enabled={enabled}):"]
        if node.target is operator.getitem and not node.users:
            return []
        text = call_text(node, self._write)
        if not node.users:
            return _wrapped("", text)
        self.texts[node] = self._fresh(node.name)
        return _wrapped(f"{self.texts[node]} = ", text)

    def _close(self, node: Node) -> None:
        if not self.open or self.open.pop() is not node.args[0]:
            raise FormatError("regions of autocast overlap")

    def _read(self, target: str) -> str:
        return "_device(self)" if target == "device" else read_text(target, self.program)

    def _write(self, value: Any) -> str:
        return value_text(value, lambda node: self.texts[node])

    def _fresh(self, name: str) -> str:
        while name in self.used:
            name = f"{name}_"
        self.used.add(name)
        return name


def _path(node: Node, before: str) -> str:
    """Return the module that a node belongs to; one that a pass made, to that of its user."""
    if PATH in node.meta:
        return str(node.meta[PATH])
    if node.target is count_batch:
        counter: Any = node.args[0]
        return str(counter.target).rpartition(".")[0]
    return next((str(user.meta[PATH]) for user in node.users if PATH in user.meta), before)


def _leaves(text: str, skeleton: Any) -> list[str]:
    """Return the places of a nested argument's leaves."""
    if type(skeleton) in (tuple, list):
        inner = enumerate(skeleton)
    elif type(skeleton) in (dict, OrderedDict):
        inner = skeleton.items()
    elif pytree.tree_structure(skeleton).is_leaf():
        return [text]
    else:
        kind = type(skeleton).__name__
        raise FormatError(f"argument {text}: a {kind} has no source that needs torch alone")
    return [
        place for key, part in inner for place in _leaves(f"{text}[{value_text(key, str)}]", part)
    ]


def _check(name: str, place: str, constant: Any) -> Iterator[str]:
    fixed = value_text(constant, str)
    same = f"{place} is {fixed}" if constant is None else f"{place} == {fixed}"
    yield f"if not ({same}):"
    message = quoted(f"{name} is fixed to {fixed} in this graph")
    yield f"    raise ValueError({message})"


def _nested(nesting: Nesting, leaves: list[str]) -> str:
    left = iter(leaves)

    def write(tree: Any) -> str:
        if tree.type is None:
            return next(left)
        parts = [write(child) for child in tree.children()]
        if tree.type is tuple:
            return f"({', '.join(parts)}{',' * (len(parts) == 1)})"
        if tree.type is list:
            return f"[{', '.join(parts)}]"
        if _has_names(tree):
            keys = [value_text(key, str) for key in tree.context]
            pairs = (f"{key}: {part}" for key, part in zip(keys, parts, strict=True))
            return f"{{{', '.join(pairs)}}}"
        if hasattr(tree.context, "_fields"):
            return f"({', '.join(parts)}{',' * (len(parts) == 1)})"
        raise FormatError(f"a {tree.type.__name__} has no source that needs torch alone")

    return write(nesting.tree)


def _has_names(tree: Any) -> bool:
    """Tell whether a nesting is a dict, or a class that describes itself by the names of parts."""
    names = tree.context
    return isinstance(names, list) and len(names) == len(tree.children())  # pyright: ignore


def _wrapped(head: str, text: str) -> list[str]:
    """Break a long call between its arguments."""
    if (
        len(head) + len(text) <= _WIDTH - 16
        or "(" not in text
        or any(mark in text for mark in "'\"")
    ):
        return [head + text]
    function, _, inside = text.partition("(")
    if not text.endswith(")"):
        return [head + text]
    body = textwrap.wrap(inside[:-1], _WIDTH - 16, break_long_words=False, break_on_hyphens=False)
    return [f"{head}{function}(", *(f"    {line}" for line in body), ")"]
