"""The tensors that graphs read: as channels see them, and their numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.fx.node import Node, map_arg

from fxprune import ops
from fxprune.atoms import Atoms
from fxprune.factors import Factor, Value, unknown
from fxprune.program import Program
from fxprune.reads import is_product

__all__ = ["StoredValues"]

_VIEWS = frozenset(
    ("t", "transpose", "permute", "view", "reshape", "unsqueeze", "squeeze", "flatten", "mT")
)


class StoredValues:
    """The stored tensors of a Program: each of their axes starts atoms of its own.

    Args:
        program: whose tensors they are.
        atoms: where atoms are made.
        mutated: names of tensors that a graph writes to, so that their numbers tell nothing.

    Attributes:
        values: by name.
        odd: whether a number in any of them is not finite.
    """

    def __init__(self, program: Program, atoms: Atoms, mutated: set[str]) -> None:
        self._program, self._atoms, self._mutated = program, atoms, mutated
        self.values: dict[str, Value] = {}
        self.odd = False
        self._owners: dict[str, nn.Module] = {}
        self._concrete: dict[Node, torch.Tensor | None] = {}

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        return iter(self.values.items())

    def value(self, node: Node, name: str) -> Value | None:
        """Return what a node reads under a name; None where it is no tensor."""
        tensor = self._tensor(node)
        if tensor is None:
            return None
        if name not in self.values:
            axes = [(Factor(n, self._atoms.fresh(n)),) for n in tensor.shape]
            self.values[name] = unknown(axes)
            self._pin_odd(node, tensor, self.values[name])
        return self.values[name]

    def concrete(self, node: object) -> torch.Tensor | None:
        """Return the tensor that a node reads: stored, masked or viewed; None if it is computed."""
        if not isinstance(node, Node):
            return None
        if node not in self._concrete:
            self._concrete[node] = self._found(node)
        return self._concrete[node]

    def _tensor(self, node: Node) -> torch.Tensor | None:
        path, _, attribute = str(node.target).rpartition(".")
        if path not in self._owners:
            self._owners[path] = self._program.get_submodule(path)
        found = getattr(self._owners[path], attribute, None)
        return found.detach() if isinstance(found, torch.Tensor) else None

    def _pin_odd(self, node: Node, tensor: torch.Tensor, value: Value) -> None:
        """Pin what is not finite: times zero, it is NaN and not zero; and what is written to."""
        if str(node.target) in self._mutated:
            for factor in value.factors:
                self._atoms.pin(factor.atoms, "the tensor is written to", node)
        if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
            return
        odd = ~tensor.isfinite()
        self.odd = self.odd or bool(odd.any())
        for axis, factor in enumerate(value.factors):
            others = [d for d in range(tensor.dim()) if d != axis]
            there = odd.any(dim=others) if others else odd
            if factor.atoms is not None:
                ids = factor.atoms[there.cpu().numpy()]
                self._atoms.pin(ids, "a number in it is not finite", node)

    def _found(self, node: Node) -> torch.Tensor | None:
        if node.op == "get_attr":
            return None if str(node.target) in self._mutated else self._tensor(node)
        if node.op != "call_function":
            return None
        name = ops.canonical_name(node.target)
        if name not in _VIEWS and not (name == "mul" and is_product(self._program, node)):
            return None
        parts = {read: self.concrete(read) for read in node.all_input_nodes}
        if any(part is None for part in parts.values()):
            return None
        args, kwargs = map_arg((node.args, node.kwargs), lambda read: parts[read])
        with torch.no_grad():
            return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
