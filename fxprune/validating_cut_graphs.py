"""Holds the graphs of a Program whose channels were cut to those before: sizes alone differ."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.announced import Fault
from fxprune.ops import canonical_name
from fxprune.snapshot import Line, Read, Ref, View
from fxprune.stored_values import COUNTS
from fxprune.validating_cuts import constants_of

__all__ = ["CutGraph"]

# What names sizes of parts or bounds of a slice may give way to what names others.
_MADE_ANEW = ("chunk", "split", "split_with_sizes", "tensor_split", "slice", "squeeze")
_aten = torch.ops.aten
_NEW = (
    operator.floordiv,
    operator.mul,
    _aten.split_with_sizes.default,
    _aten.index_select.default,
    _aten.squeeze.dims,
)


@dataclass
class CutGraph:
    """Holds one graph after a cut, or after constant branches went, to the graph before.

    Args:
        mode: whose graph it is.
        was: the graph before.
        now: the graph after.
        edits: "cuts", or "constants".
        added: biases that were made.
    """

    mode: str
    was: View
    now: View
    edits: str
    added: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._old = {line.name: line for line in self.was.lines}
        self._left = {line.name: line for line in self.now.lines}
        self._constants = constants_of(self.now.lines)

    def faults(self) -> Iterator[Fault]:
        """Yield the nodes that are otherwise than a cut leaves them."""
        kept = [name for name in self._old if name in self._left]
        if kept != [name for name in self._left if name in self._old]:
            yield Fault(f"the nodes of the {self.mode} graph have another order")
        for name, old in self._old.items():
            if name in self._left:
                yield from self._line(old, self._left[name])
            elif self.edits == "cuts" and not (_is_made_anew(old) or self._is_constant(old)):
                yield Fault(f"went in the {self.mode} graph", name)
        for name, line in self._left.items():
            if name not in self._old and not self._may_come(line):
                yield Fault(f"came in the {self.mode} graph", name)

    def _is_constant(self, line: Line) -> bool:
        """Tell whether a node computes indices, which are written anew, of constants alone."""
        if line.op == "get_attr":
            return True
        if line.op != "call_function" or canonical_name(line.target) not in COUNTS:
            return False
        reads = list(pytree.tree_leaves((line.args, line.kwargs), _is_read))
        nodes = [self._old[part.node] for part in reads if isinstance(part, Ref)]
        return not any(isinstance(part, Read) for part in reads) and all(
            map(self._is_constant, nodes)
        )

    def _may_come(self, line: Line) -> bool:
        return line.name in self._constants or (self.edits == "cuts" and line.target in _NEW)

    def _line(self, old: Line, new: Line) -> Iterator[Fault]:
        if (old.op, old.target) != (new.op, new.target):
            text = f"is {new.op} {new.target}, and was {old.op} {old.target}"
            yield Fault(f"{text}, in the {self.mode} graph", new.name)
        elif not (self._alike(old.args, new.args) and self._keywords(old.kwargs, new.kwargs)):
            text = f"takes {new.args} {new.kwargs}, and took {old.args} {old.kwargs}"
            yield Fault(f"{text}, in the {self.mode} graph", new.name)

    def _keywords(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        there = all(key in new and self._alike(old[key], new[key]) for key in old)
        return there and all(self._alike(None, new[key]) for key in new if key not in old)

    def _alike(self, old: Any, new: Any) -> bool:
        """Tell whether an argument is the same, but for what a cut may change in it."""
        if isinstance(old, Ref) and isinstance(new, Ref):
            return old == new or self._may_stand_for(old, new)
        if isinstance(new, Read) and old is None:
            return new.parameter in self.added
        if isinstance(new, Ref):
            return new.node in self._constants
        if isinstance(old, Ref | Read) or isinstance(new, Read):
            return old == new or (isinstance(old, Ref) and old.node not in self._left)
        if isinstance(old, list | tuple) and type(old) is type(new) and len(old) == len(new):
            return all(map(self._alike, old, new))
        if _is_count(new) and (old is None or _is_count(old)):
            return self.edits == "cuts" or old == new
        return repr(old) == repr(new)

    def _may_stand_for(self, old: Ref, new: Ref) -> bool:
        return old.node not in self._left or new.node not in self._old


def _is_read(value: Any) -> bool:
    return isinstance(value, Ref | Read)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_made_anew(line: Line) -> bool:
    if line.op == "get_attr" or line.target is operator.getitem:
        return True
    schema = getattr(getattr(line.target, "_schema", None), "name", "")
    return schema.removeprefix("aten::") in _MADE_ANEW
