"""The module tree of a .fxp: names, tensors and flags, each shared module once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.errors import FormatError
from fxprune.saved_document import SavedModule
from fxprune.saved_tensors import TensorWriter
from fxprune.shell import Shell, kind_of

__all__ = ["decode_tree", "encode_tree"]

_MOST_LEVELS = 200
_MOST_PATHS = 1_000_000
_TAKEN = frozenset(dir(Shell("")))


def encode_tree(root: nn.Module, kind: str, writer: TensorWriter) -> list[SavedModule]:
    """Return a tree's modules, each after those that it holds; the root is the last.

    Args:
        root: the Program, or a part of it.
        kind: the class name of the root.
        writer: takes the tensors; it has surveyed them.

    Raises:
        FormatError: a module is no plain place in a tree.
    """
    made: list[SavedModule] = []
    numbers: dict[int, int] = {}
    _encode(root, kind, "", writer, made, numbers)
    return made


def _encode(
    module: nn.Module,
    kind: str,
    path: str,
    writer: TensorWriter,
    made: list[SavedModule],
    numbers: dict[int, int],
) -> int:
    if id(module) in numbers:
        return numbers[id(module)]
    # Tensors are taken in the order of state_dict: a module's own before those of its children.
    parameters = _tensors(module._parameters, path, writer)
    buffers = _tensors(module._buffers, path, writer)
    children: dict[str, int | None] = {}
    for name, child in module._modules.items():
        inner = f"{path}{name}"
        _check_name(inner, name)
        if child is not None and not isinstance(child, Shell):
            raise FormatError(
                f"the graph calls a nested graph, {inner!r}, which a .fxp cannot hold"
            )
        children[name] = (
            None
            if child is None
            else _encode(child, kind_of(child), f"{inner}.", writer, made, numbers)
        )
    numbers[id(module)] = len(made)
    made.append(
        SavedModule(
            kind=kind,
            training=module.training,
            parameters=parameters,
            buffers=buffers,
            unsaved=[name for name in buffers if name in module._non_persistent_buffers_set],
            children=children,
        )
    )
    return numbers[id(module)]


def _tensors(
    named: Mapping[str, torch.Tensor | None], path: str, writer: TensorWriter
) -> dict[str, int | None]:
    for name in named:
        _check_name(f"{path}{name}", name)
    return {
        name: None if tensor is None else writer.add(f"{path}{name}", tensor)
        for name, tensor in named.items()
    }


def decode_tree(saved: list[SavedModule], tensors: list[torch.Tensor]) -> nn.Module:
    """Return the tree that `encode_tree` made `saved` of.

    Args:
        saved: from a file.
        tensors: parameters and buffers by number.

    Raises:
        FormatError: a number or a name is at fault, something is left over, or the tree is too
            large to walk.
    """
    _check_size(saved)
    modules: list[nn.Module] = []
    for at, module in enumerate(saved):
        try:
            modules.append(_decoded(module, tensors, modules))
        except FormatError as error:
            raise FormatError(f"modules[{at}]: {error}") from error
    _check_all_used("modules", len(saved) - 1, (m.children for m in saved))
    named = (numbers for m in saved for numbers in (m.parameters, m.buffers))
    _check_all_used("tensors", len(tensors), named)
    return modules[-1]


def _decoded(saved: SavedModule, tensors: list[torch.Tensor], before: list[nn.Module]) -> Shell:
    shell = Shell(saved.kind)
    shell.training = saved.training
    shell._parameters = {
        name: _parameter(name, _at(name, number, tensors))
        for name, number in saved.parameters.items()
    }
    shell._buffers = {name: _at(name, number, tensors) for name, number in saved.buffers.items()}
    shell._modules = {name: _at(name, number, before) for name, number in saved.children.items()}
    names = [*saved.parameters, *saved.buffers, *saved.children]
    if len(set(names)) < len(names):
        raise FormatError("one name stands for two things")
    for name in names:
        _check_name(name, name)
    if not set(saved.unsaved) <= set(saved.buffers):
        raise FormatError("unsaved: not all of these are buffers")
    shell._non_persistent_buffers_set = set(saved.unsaved)
    return shell


def _at(name: str, number: int | None, things: list[Any]) -> Any:
    if number is not None and number >= len(things):
        raise FormatError(f"{name[:100]!a}: there is no number {number} before it")
    return None if number is None else things[number]


def _parameter(name: str, tensor: torch.Tensor | None) -> nn.Parameter | None:
    if tensor is not None and not isinstance(tensor, nn.Parameter):
        raise FormatError(f"{name[:100]!a}: this tensor is no parameter")
    return tensor


def _check_size(saved: list[SavedModule]) -> None:
    """Check that a walk over all paths ends: shared modules can make the paths very many."""
    if not saved:
        raise FormatError("modules: there is no module")
    sizes: list[int] = []
    levels: list[int] = []
    for at, module in enumerate(saved):
        inner = [n for n in module.children.values() if n is not None and n < at]
        own = 1 + len(module.parameters) + len(module.buffers)
        sizes.append(own + sum(sizes[n] for n in inner))
        levels.append(1 + max((levels[n] for n in inner), default=0))
        if sizes[-1] > _MOST_PATHS or levels[-1] > _MOST_LEVELS:
            raise FormatError(
                f"modules[{at}]: the tree has more than {_MOST_PATHS:,} names or {_MOST_LEVELS} "
                "levels"
            )


def _check_all_used(what: str, count: int, named: Iterable[Mapping[str, int | None]]) -> None:
    used = {number for numbers in named for number in numbers.values()}
    left = next((number for number in range(count) if number not in used), None)
    if left is not None:
        raise FormatError(f"{what}[{left}]: nothing in the tree holds it")


def _check_name(full: str, name: str) -> None:
    """Check a name that stands in generated code and must not hide what a module needs."""
    if name in _TAKEN or name.startswith("__"):
        raise FormatError(f"{full[:200]!a}: {name[:100]!a} is a name that a module needs itself")
    if not name or not name.isprintable() or any(mark in name for mark in ".\\\"'{}"):
        raise FormatError(f"{full[:200]!a}: a name has no dots, quotes, backslashes or braces")
