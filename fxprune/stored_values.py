"""The tensors that graphs read: as channels see them, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch.fx.node import Node, map_arg

from fxprune import ops
from fxprune.aliasing import Aliases, detaches, written
from fxprune.atoms import Atoms
from fxprune.factors import Factor, Value, unknown
from fxprune.program import Program
from fxprune.reads import is_product
from fxprune.shell import submodule

__all__ = ["COUNTS", "StoredValues"]

# Views, parts and copies: the same numbers.
_VIEWS = frozenset(
    (
        *("t", "transpose", "permute", "view", "reshape", "unsqueeze", "squeeze", "flatten", "mT"),
        *("unflatten", "swapaxes", "movedim", "numpy_T", "contiguous", "clone", "alias", "detach"),
        *("lift_fresh", "lift_fresh_copy", "split", "split_with_sizes", "chunk", "unbind"),
        *("getitem", "select", "slice", "to", "_to_copy"),
    )
)
# What indices are computed by, from constants.
COUNTS = _VIEWS | frozenset(
    (
        *("arange", "full", "zeros", "ones", "add", "sub", "rsub", "mul", "neg", "remainder"),
        *("floor_divide", "flip", "roll", "cat", "stack", "expand", "repeat"),
    )
)


class StoredValues:
    """The stored tensors of a Program: each of their axes starts atoms of its own.

    Args:
        program: whose tensors they are.
        atoms: where atoms are made.
        aliases: of each graph; the numbers of what it writes to tell nothing.

    Attributes:
        values: by name.
        odd: whether a number in any of them is not finite.
    """

    def __init__(self, program: Program, atoms: Atoms, aliases: Collection[Aliases]) -> None:
        self._program, self._atoms = program, atoms
        self._mutated = {name for each in aliases for name in each.mutated}
        self._overwritten = {node for each in aliases for node in each.overwritten}
        self.values: dict[str, Value] = {}
        self.odd = False
        self._tensors: dict[str, torch.Tensor | None] = {}
        self._concrete: dict[Node, Any] = {}
        self._counted: dict[Node, Any] = {}

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
        found = self._seen(node)
        return found if isinstance(found, torch.Tensor) else None

    def is_stored(self, node: object) -> bool:
        """Tell whether a node reads a stored tensor, masked or viewed, or parts of one."""
        return self._seen(node) is not None

    def constant(self, node: object) -> torch.Tensor | None:
        """Return the tensor that a node computes of nothing but constants; None if of others."""
        found = self._count(node)
        return found if isinstance(found, torch.Tensor) else None

    def _seen(self, node: object) -> Any:
        if not isinstance(node, Node):
            return None
        if node not in self._concrete:
            self._concrete[node] = self._found(node)
        return self._concrete[node]

    def _count(self, node: object) -> Any:
        if not isinstance(node, Node):
            return None
        if node not in self._counted:
            found = self._seen(node)
            known = node.op == "call_function" and ops.canonical_name(node.target) in COUNTS
            found = self._run(node, self._count) if found is None and known else found
            self._counted[node] = found
        return self._counted[node]

    def _tensor(self, node: Node) -> torch.Tensor | None:
        target = str(node.target)
        if target not in self._tensors:
            path, _, attribute = target.rpartition(".")
            found = getattr(submodule(self._program, path), attribute, None)
            self._tensors[target] = found.detach() if isinstance(found, torch.Tensor) else None
        return self._tensors[target]

    def _pin_odd(self, node: Node, tensor: torch.Tensor, value: Value) -> None:
        """Pin what is not finite: times zero, it is NaN and not zero; and what is written to."""
        if str(node.target) in self._mutated:
            for factor in value.factors:
                self._atoms.pin(factor.atoms, "the tensor is written to", node)
        if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
            return
        odd = ~tensor.isfinite()
        self.odd = self.odd or bool(odd.any())
        for axis, factor in enumerate(value.factors):
            others = [d for d in range(tensor.dim()) if d != axis]
            there = odd.any(dim=others) if others else odd
            if factor.atoms is not None:
                ids = factor.atoms[there.cpu().numpy()]
                self._atoms.pin(ids, "a number in it is not finite", node)

    def _found(self, node: Node) -> Any:
        if node.op == "get_attr":
            return None if str(node.target) in self._mutated else self._tensor(node)
        if node.op != "call_function":
            return None
        name = ops.canonical_name(node.target)
        if name not in _VIEWS and not (name == "mul" and is_product(self._program, node)):
            return None
        return self._run(node, self._seen) if node.all_input_nodes else None

    def _run(self, node: Node, found: Callable[[Node], Any]) -> Any:
        """Call an operator on what its inputs are; None where one is not known."""
        if node in self._overwritten or (written(node) is not None and not detaches(node)):
            return None
        if detaches(node):
            return found(node.all_input_nodes[0])
        places = {"device", "pin_memory"}  # indices are read where they are computed
        given = {key: value for key, value in node.kwargs.items() if key not in places}
        parts: dict[Node, Any] = {}
        map_arg((node.args, given), lambda read: parts.setdefault(read, found(read)))
        if any(part is None for part in parts.values()):
            return None
        args, kwargs = map_arg((node.args, given), lambda read: parts[read])
        with torch.no_grad():
            return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
