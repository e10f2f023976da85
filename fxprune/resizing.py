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
    from fxprune.shrink_record import ShrinkRecord

__all__ = ["ResizingEdits", "bias_name"]

Place = tuple[dict[str, Any], str]


class ResizingEdits:
    """What the Rewriter does to sizes; a part of it."""

    program: Program

    def __init__(self) -> None:
        # Of each tensor by id: the dicts and keys that hold it. All of these are held there.
        self._places_of: dict[int, list[Place]] = {}

    def _count(self) -> None:
        raise NotImplementedError

    def record_shrink(self, record: ShrinkRecord) -> None:
        """Keep what a shrink did for the report."""
        self.program.captured.shrinks += (record,)

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
        self._count()
        if name not in self.program.captured.first:
            self._swap(_at(self.program, name), tensor)
            return
        old = tensors.parameter(self.program, name)
        new = nn.Parameter(tensor, requires_grad=old.requires_grad)
        self._swap(old, new)
        replaced = self.program.captured.replaced
        first = next((pair for pair in replaced if pair[1] is old), None)
        # Made by an earlier edit? Then the caller's object is an older one.
        self.program.captured.replaced = [pair for pair in replaced if pair is not first]
        self.program.captured.replaced.append((old if first is None else first[0], new))

    def _swap(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Put a tensor into the place of another one, under all its names."""
        if id(old) not in self._places_of:
            self._places_of = places_by_tensor(self.program)
        found = self._places_of.pop(id(old))
        for items, key in found:
            items[key] = new
        self._places_of[id(new)] = found

    def holds(self, name: str) -> bool:
        """Tell whether a name is that of a stored tensor, and not of a flag or a graph."""
        owner, attribute = _owner(self.program, name)
        return any(attribute in items for items in (owner._parameters, owner._buffers))

    def drop_tensor(self, name: str) -> None:
        """Take a tensor out of the tree that no graph reads, under all its names.

        Args:
            name: as graphs read it; that of a mask, or of what it masks, included.
        """
        first = self.program.captured.first
        tensor = _at(self.program, name)
        for items, key in places_by_tensor(self.program)[id(tensor)]:
            del items[key]
        plain = name if name in first else name.removesuffix("_orig")
        left = {key: value for key, value in first.items() if value != first.get(plain)}
        if isinstance(tensor, nn.Parameter):
            self.program.captured.first = left
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

    def add_constant(self, name: str, tensor: torch.Tensor, *, persistent: bool = False) -> str:
        """Add a buffer; return the free name that it got."""
        while hasattr(self.program, name):
            name = f"{name}_"
        tensor = tensor.to(self.program.device)
        self.program.register_buffer(name, tensor, persistent=persistent)
        self._count()
        return name

    def add_to_bias(self, node: Node, role: str, delta: torch.Tensor) -> None:
        """Add to the bias of a linear layer or a convolution; what a mask held back joins in.

        Args:
            node: its bias is read by it alone.
            role: which of its arguments is the bias.
            delta: float64, one number an output.

        Raises:
            PassError: the bias is computed.
        """
        bias = ops.argument(node, role)
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

    def add_bias(self, node: Node, name: str, bias: torch.Tensor) -> None:
        """Give a linear layer or a convolution a bias of its own.

        Args:
            node: has no bias.
            name: see `bias_name`; in the graph of another mode the bias may be there already.
            bias: one number an output.
        """
        first = self.program.captured.first
        if name not in first:
            weight = parameter_of(self.program, ops.argument(node, "weight"))
            like = tensors.parameter(self.program, str(weight))
            owner, attribute = _owner(self.program, name)
            made = nn.Parameter(bias.to(like), requires_grad=like.requires_grad)
            owner._parameters[attribute] = made
            self.program.captured.first = _after(first, str(weight), name)
        read: Any = self.read(name, before=node)  # pyright: ignore[reportAttributeAccessIssue]
        at = [arg.name for arg in ops.schema_arguments(node.target)].index("bias")
        if at < len(node.args):
            node.args = (*node.args[:at], read, *node.args[at + 1 :])
        else:
            node.kwargs = {**node.kwargs, "bias": read}
        read.meta.setdefault(VALUE, ((bias.shape[0],), bias.dtype))
        self._count()


def places_by_tensor(program: Program) -> dict[int, list[Place]]:
    """Return, for each tensor by its id, the dicts of modules that hold it, with the key."""
    found: dict[int, list[Place]] = {}
    for module in program.modules():
        for items in (module._parameters, module._buffers):
            for key, tensor in items.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append((items, key))
    return found


def bias_name(program: Program, weight: str) -> str | None:
    """Return what a bias is called that is made beside a weight; None where its place is taken.

    Args:
        program: whose weight it is.
        weight: the weight's first name.
    """
    path, _, attribute = weight.rpartition(".")
    name = attribute.replace("weight", "bias") if "weight" in attribute else f"{attribute}_bias"
    full = f"{path}.{name}" if path else name
    taken = getattr(program.get_submodule(path), name, None) is not None
    return None if taken or full in program.captured.first else full


def _after(first: dict[str, str], weight: str, name: str) -> dict[str, str]:
    """Return the parameters' names with another one behind a weight's."""
    made: dict[str, str] = {}
    for key, value in first.items():
        made[key] = value
        if key == weight:
            made[name] = name
    return made


def _owner(program: Program, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return program.get_submodule(path), attribute


def _at(program: Program, name: str) -> torch.Tensor:
    owner, attribute = _owner(program, name)
    return getattr(owner, attribute)
