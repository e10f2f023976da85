"""What a pass did to a Program that it did not declare; shares no code with passes.

The state that was found is held to the one expected: tensors to `Expected`, lines of graphs to the
lines before, of which an effect may let some come, go, or count other channels.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.announced import Effect, Fault
from fxprune.ops import canonical_name
from fxprune.snapshot import Line, Read, Ref, Snapshot, View
from fxprune.stored_values import COUNTS
from fxprune.validating_tree import Expected, is_constant

__all__ = ["faults_of"]

_aten = torch.ops.aten
# A cut puts the second kind of operator in the place of the first.
_REPLACED = ("chunk", "split", "split_with_sizes", "tensor_split", "slice", "squeeze")
_REPLACING = (
    operator.floordiv,
    operator.mul,
    _aten.split_with_sizes.default,
    _aten.index_select.default,
    _aten.squeeze.dims,
)


def faults_of(before: Snapshot, after: Snapshot, effect: Effect) -> Iterator[Fault]:
    """Yield what a pass did that it did not declare, graphs first, in their order.

    Args:
        before: the Program as the pass found it.
        after: the Program as the pass left it.
        effect: what the pass declared.
    """
    for mode, view in after.views.items():
        yield from _read_faults(mode, view, after)
    if effect.kind == "anything":
        yield from _write_faults(before)
        return
    if before.views.keys() != after.views.keys():
        yield Fault(f"the graphs are {sorted(after.views)}, and were {sorted(before.views)}")
        return
    for mode, view in after.views.items():
        yield from _Lines(mode, before.views[mode], view, effect).difference()
        if effect.kind != "adopts":  # whose products were there
            yield from _product_faults(mode, before.views[mode], view)
    yield from _write_faults(before)
    yield from Expected(before, after, effect).difference()


def _read_faults(mode: str, view: View, after: Snapshot) -> Iterator[Fault]:
    """Yield masked parameters that are not read through one product."""
    if view.fault is not None:
        yield Fault(f"{view.fault.text} in the {mode} graph", view.fault.node)
    for name, products in view.products.items():
        if len(products) > 1:
            yield Fault(f"{name!r} is multiplied again in the {mode} graph", products[1].node)
    for name in sorted(view.reads & after.masked.keys() - view.products.keys()):
        yield Fault(f"{name!r} has a mask and no product in the {mode} graph")


def _product_faults(mode: str, was: View, now: View) -> Iterator[Fault]:
    """Yield new products of regions without gradients: what reads them elsewhere would lose its."""
    for name, (product, *_) in now.products.items():
        old = was.products.get(name, [product])[0].node
        if product.node != old:
            text = f"is another product of {name!r} than before, in the {mode} graph"
            yield Fault(text, product.node)
        elif name not in was.products and not product.has_gradient:
            text = f"multiplies {name!r} in a region without gradients, {mode} graph"
            yield Fault(text, product.node)


def _write_faults(before: Snapshot) -> Iterator[Fault]:
    """Yield tensors that were written to since: callers hold them too."""
    for path, place in before.tree.items():
        for key, tensor in (*place.parameters.items(), *place.buffers.items()):
            if not tensor.is_inference() and tensor._version != before.versions[id(tensor)]:
                yield Fault(f"the tensor {(f'{path}.{key}' if path else key)!r} was written to")


class _Lines:
    """The lines of one graph before and after a pass, reads of parameters looked through."""

    def __init__(self, mode: str, was: View, now: View, effect: Effect) -> None:
        self.mode, self.effect = mode, effect
        self.was = {line.name: line for line in was.lines}
        self.now = {line.name: line for line in now.lines}
        self.constants = {line.name for line in now.lines if self._is_constant(line)}

    def difference(self) -> Iterator[Fault]:
        """Yield the nodes that went, came or changed in a way the effect does not allow."""
        where = f"in the {self.mode} graph"
        for name, line in self.was.items():
            if name not in self.now and not self._may_go(line):
                yield Fault(f"went {where}", name)
        for name, line in self.now.items():
            if name not in self.was and not self._may_come(line):
                yield Fault(f"came {where}", name)
        kept = [line for name, line in self.was.items() if name in self.now]
        left = [line for name, line in self.now.items() if name in self.was]
        for old, new in zip(kept, left, strict=True):
            if old.name != new.name:
                yield Fault(f"stands where {old.name} stood {where}", new.name)
                return
            if (old.op, old.target) != (new.op, new.target):
                text = f"is {new.op} {new.target}, and was {old.op} {old.target}, {where}"
                yield Fault(text, new.name)
            elif not self._alike((old.args, old.kwargs), (new.args, new.kwargs)):
                yield Fault(f"takes {_shown(new)}, and took {_shown(old)}, {where}", new.name)

    def _may_go(self, line: Line) -> bool:
        if self.effect.kind == "adopts":  # a product of a mask, its cast and its reads
            return line.op == "get_attr" or _aten_name(line) in ("mul", "to", "_to_copy")
        if self.effect.kind == "cuts":
            replaced = line.target is operator.getitem or _aten_name(line) in _REPLACED
            return replaced or self._counts_alone(line)
        return self.effect.kind == "constants"

    def _may_come(self, line: Line) -> bool:
        replacing = self.effect.kind == "cuts" and line.target in _REPLACING
        return replacing or line.name in self.constants

    def _is_constant(self, line: Line) -> bool:
        return self.effect.shrinks and line.op == "get_attr" and is_constant(str(line.target))

    def _counts_alone(self, line: Line) -> bool:
        """Tell whether a node computes indices, which are written anew, of constants alone."""
        if line.op == "get_attr":
            return True
        if line.op != "call_function" or canonical_name(line.target) not in COUNTS:
            return False
        reads = pytree.tree_leaves((line.args, line.kwargs), lambda x: isinstance(x, Ref | Read))
        nodes = [self.was[part.node] for part in reads if isinstance(part, Ref)]
        return not any(isinstance(part, Read) for part in reads) and all(
            map(self._counts_alone, nodes)
        )

    def _alike(self, old: Any, new: Any) -> bool:
        """Tell whether an argument is what it was, but for what the effect may change in it."""
        if isinstance(new, Ref) and new.node in self.constants:
            return True
        if isinstance(old, Ref) and old.node not in self.now:
            return isinstance(new, Ref | Read)
        if isinstance(new, Ref) and new.node not in self.was:
            return isinstance(old, Ref)
        if old is None and isinstance(new, Read):
            return new.parameter in self.effect.added
        if isinstance(old, dict) and isinstance(new, dict):
            same = all(self._alike(old.get(key), part) for key, part in new.items())
            return same and old.keys() <= new.keys()
        if isinstance(old, list | tuple) and type(old) is type(new) and len(old) == len(new):
            return all(map(self._alike, old, new))
        if isinstance(old, slice) and isinstance(new, slice):
            parts = ((each.start, each.stop, each.step) for each in (old, new))
            return self._alike(*parts)
        if self.effect.kind == "cuts" and _is_count(new) and (old is None or _is_count(old)):
            return True
        # As text: 1, 1.0 and True are equal, and NaN is not.
        return repr(old) == repr(new)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _aten_name(line: Line) -> str:
    return getattr(getattr(line.target, "_schema", None), "name", "").removeprefix("aten::")


def _shown(line: Line) -> str:
    args = [str(arg) for arg in line.args]
    return f"({', '.join([*args, *(f'{k}={v}' for k, v in line.kwargs.items())])})"
