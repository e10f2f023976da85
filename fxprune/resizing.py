"""Edits of a Rewriter that change sizes: tensors, noted shapes, constants and biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx.node import Node, map_arg

from fxprune import ops, tensors
from fxprune.errors import PassError
from fxprune.importing import VALUE
from fxprune.reads import is_product, parameter_of

if TYPE_CHECKING:
    from fxprune.program import Program

__all__ = ["ResizingEdits"]


class ResizingEdits:
    """What the Rewriter does to sizes; a part of it."""

    program: Program

    def _count(self) -> None:
        raise NotImplementedError

    def stored(self, name: str) -> torch.Tensor:
        """Return a stored tensor: a parameter by any name, without its mask, or a buffer."""
        if name in self.program.captured.first:
            return tensors.parameter(self.program, name)
        return _at(self.program, name)

    def resize(self, name: str, tensor: torch.Tensor) -> None:
        """Give a parameter, under all its names, or a buffer other values of another shape.

        Args:
            name: as the graphs read it; of a masked parameter, without the suffix.
            tensor: detached.
        """
        if name not in self.program.captured.first:
            owner, attribute = _owner(self.program, name)
            owner._buffers[attribute] = tensor
            self._count()
            return
        old = tensors.parameter(self.program, name)
        new = nn.Parameter(tensor, requires_grad=old.requires_grad)
        self.program.captured.replaced.append((old, new))
        for module in self.program.modules():
            for key, value in module._parameters.items():
                if value is old:
                    module._parameters[key] = new
        self._count()

    def note(self, node: Node, key: str, value: Any) -> None:
        """Write down what is known of a node."""
        node.meta[key] = value
        self._count()

    def note_all(self, node: Node, like: Node) -> None:
        """Write down for a node what is known of the one in whose place it stands."""
        node.meta.update({key: value for key, value in like.meta.items() if key not in node.meta})

    def replace_argument(self, node: Node, old: Node, new: Node) -> None:
        """Let one node read another node in the place of one."""
        node.args = map_arg(node.args, lambda n: new if n is old else n)
        node.kwargs = map_arg(node.kwargs, lambda n: new if n is old else n)
        self._count()

    def add_constant(self, name: str, tensor: torch.Tensor) -> str:
        """Add a non-persistent buffer; return the free name that it got."""
        while hasattr(self.program, name):
            name = f"{name}_"
        self.program.register_buffer(name, tensor, persistent=False)
        self._count()
        return name

    def add_to_bias(self, node: Node, delta: torch.Tensor) -> None:
        """Add to the bias of a linear layer or a convolution; what a mask held back joins in.

        Args:
            node: its bias is read by it alone.
            delta: float64, one number an output.

        Raises:
            PassError: the bias is computed.
        """
        bias = ops.argument(node, "bias")
        name = parameter_of(self.program, bias)
        if name is None:
            raise PassError(f"the bias of {node.name} is computed, so that nothing can be added")
        orig = tensors.parameter(self.program, name)
        value = tensors.value(self.program, name).detach()
        there = (delta != 0).to(orig.device)
        total = (value.double() + delta.to(orig.device)).to(orig.dtype)
        self.resize(name, torch.where(there, total, orig.detach()))
        if is_product(self.program, bias):
            key = str(bias.args[1].target)
            mask = _at(self.program, key)
            self.resize(key, torch.where(there, torch.ones_like(mask), mask))

    def add_bias(self, node: Node, bias: torch.Tensor) -> None:
        """Give a linear layer or a convolution a bias of its own, beside its weight.

        Args:
            node: has no bias.
            bias: one number an output.

        Raises:
            PassError: its weight is computed, or the place is taken.
        """
        weight = parameter_of(self.program, node.args[1])
        if weight is None:
            raise PassError(f"the weight of {node.name} is computed, so that it gets no bias")
        path, _, attribute = weight.rpartition(".")
        name = attribute.replace("weight", "bias") if "weight" in attribute else f"{attribute}_bias"
        full = f"{path}.{name}" if path else name
        owner = self.program.get_submodule(path)
        if full not in self.program.captured.first:
            if getattr(owner, name, None) is not None:
                raise PassError(f"{full!r} is taken, so that {node.name} gets no bias")
            like = tensors.parameter(self.program, weight)
            owner._parameters[name] = nn.Parameter(bias.to(like), requires_grad=like.requires_grad)
            self.program.captured.first = {**self.program.captured.first, full: full}
        read: Any = self.read(full, before=node)  # pyright: ignore[reportAttributeAccessIssue]
        at = [arg.name for arg in ops.schema_arguments(node.target)].index("bias")
        if at < len(node.args):
            node.args = (*node.args[:at], read, *node.args[at + 1 :])
        else:
            node.kwargs = {**node.kwargs, "bias": read}
        read.meta.setdefault(VALUE, ((bias.shape[0],), bias.dtype))
        self._count()


def _owner(program: Program, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return program.get_submodule(path), attribute


def _at(program: Program, name: str) -> torch.Tensor:
    owner, attribute = _owner(program, name)
    return getattr(owner, attribute)
