"""The `__init__` of a Program's source: every module, parameter and buffer, declared in order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fxprune.errors import FormatError
from fxprune.shell import Shell, kind_of
from fxprune.source_values import is_list, is_plain, quoted, read_text

__all__ = ["tree_lines"]


def tree_lines(root: nn.Module) -> list[str]:
    """Return the statements that build a tree like the given one, without values.

    Args:
        root: the Program.

    Raises:
        FormatError: the tree holds a module with code of its own, or a tensor of another kind.
    """
    return list(_Tree(root).lines(root, ""))


class _Tree:
    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules: dict[int, str] = {}
        self.tensors: dict[int, str] = {}

    def lines(self, module: nn.Module, path: str) -> Iterator[str]:
        self.modules[id(module)] = path
        here = read_text(path, self.root)
        for name, tensor in module._parameters.items():
            made = self._tensor(tensor, f"{path}.{name}" if path else name)
            yield _set(here, name, made, f"register_parameter({quoted(name)}, {made})", tensor)
        for name, tensor in module._buffers.items():
            made = self._tensor(tensor, f"{path}.{name}" if path else name)
            kept = name not in module._non_persistent_buffers_set
            options = "" if kept else ", persistent=False"
            yield f"{here}.register_buffer({quoted(name)}, {made}{options})"
        for name, child in module._modules.items():
            inner = f"{path}.{name}" if path else name
            yield from self._child(module, here, name, inner, child)
        if not module.training:
            yield f"{here}.training = False"

    def _child(
        self, parent: nn.Module, here: str, name: str, inner: str, child: nn.Module | None
    ) -> Iterator[str]:
        if child is None:
            yield f"{here}.add_module({quoted(name)}, None)"
            return
        if not isinstance(child, Shell):
            raise FormatError(f"{inner!r} is a {type(child).__name__} with code of its own")
        known = self.modules.get(id(child))
        new = "nn.ModuleList()" if is_list(child) else "nn.Module()"
        made = new if known is None else read_text(known, self.root)
        comment = f"  # {kind_of(child)}" if known is None and is_plain(kind_of(child)) else ""
        if is_list(parent) and parent is not self.root:
            yield f"{here}.append({made}){comment}"
        elif is_plain(name):
            yield f"{here}.{name} = {made}{comment}"
        else:
            yield f"{here}.add_module({quoted(name)}, {made}){comment}"
        if known is None:
            yield from self.lines(child, inner)

    def _tensor(self, tensor: torch.Tensor | None, path: str) -> str:
        if tensor is None:
            return "None"
        if id(tensor) in self.tensors:
            return read_text(self.tensors[id(tensor)], self.root)
        self.tensors[id(tensor)] = path
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise FormatError(f"{path!r} is a tensor of another kind than dense")
        made = _empty(tensor)
        if not isinstance(tensor, nn.Parameter):
            return made
        flag = "" if tensor.requires_grad else ", requires_grad=False"
        return f"nn.Parameter({made}{flag})"


def _set(here: str, name: str, made: str, call: str, tensor: torch.Tensor | None) -> str:
    return f"{here}.{name} = {made}" if tensor is not None and is_plain(name) else f"{here}.{call}"


def _empty(tensor: torch.Tensor) -> str:
    shape = tuple(tensor.shape)
    dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
    if tensor.is_contiguous():
        return f"torch.empty({shape}{dtype})"
    return f"torch.empty_strided({shape}, {tuple(tensor.stride())}{dtype})"
