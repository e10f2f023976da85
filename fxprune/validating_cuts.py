"""Holds a Program whose channels were cut to the record of the cut: tensors, keys and graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fxprune.announced import Announced, Fault
from fxprune.bits import same_bits
from fxprune.snapshot import Place, Snapshot

__all__ = ["CutTree", "constants_of"]

_CONSTANT = "_constant"


@dataclass
class CutTree:
    """Holds the tree of modules after a cut, or after constant branches went, to its record.

    Each tensor is the one that was there, less the channels that the record names, bit for bit;
    a bias that took over constants has the right shape, and what it holds is for runs to tell.
    """

    before: Snapshot
    after: Snapshot
    said: Announced
    _cuts: dict[int, list[tuple[int, tuple[int, ...]]]] = field(default_factory=dict[int, Any])
    _absorbed: set[int] = field(default_factory=set[int])
    _removed: set[int] = field(default_factory=set[int])

    def faults(self) -> Iterator[Fault]:
        """Yield what is otherwise than the record says."""
        self._take_in()
        yield from self._names()
        for path, was in self.before.tree.items():
            now = self.after.tree.get(path)
            if now is None:
                yield Fault(f"the module {path!r} went")
            else:
                yield from self._place(path, was, now)
        for path in self.after.tree:
            if path not in self.before.tree:
                yield Fault(f"the module {path!r} came")
        if self.before.outputs != self.after.outputs:
            yield Fault("outputs are nested otherwise")

    def _take_in(self) -> None:
        """Note by tensor what the record says by name."""
        for each in self.said.cuts:
            for tensor in self._tensors(each.tensor):
                self._cuts.setdefault(id(tensor), []).append((each.axis, each.kept))
        for name in self.said.absorbed:
            self._absorbed.update(id(tensor) for tensor in self._tensors(name))
        for name in self.said.removed:
            self._removed.update(id(tensor) for tensor in self._tensors(name))

    def _tensors(self, name: str) -> list[torch.Tensor]:
        """Return what a name of a record stands for: a parameter with its mask, or a buffer."""
        if name in self.before.first:
            return [t for t in self.before.stored(name) if t is not None]
        path, _, attribute = name.rpartition(".")
        place = self.before.tree.get(path)
        found = None if place is None else place.buffers.get(attribute)
        return [] if found is None else [found]

    def _names(self) -> Iterator[Fault]:
        first = self.before.first
        wanted = [n for n in first if id(self.before.stored(n)[0]) not in self._removed]
        found = [name for name in self.after.first if name not in self.said.added]
        if wanted != found:
            yield Fault("the parameters have other names, or another order")
        for name, first in self.after.first.items():
            pairs = zip(self.after.stored(name), self.after.stored(first), strict=True)
            if any(own is not other for own, other in pairs):
                yield Fault(f"{name!r} and {first!r} are one parameter, but not one tensor")

    def _place(self, path: str, was: Place, now: Place) -> Iterator[Fault]:
        if (was.kind, was.training) != (now.kind, now.training):
            yield Fault(f"the module {path!r} has another class or training flag")
        for old, new in ((was.parameters, now.parameters), (was.buffers, now.buffers)):
            yield from self._held(path, old, new)
        left = {key for key, tensor in was.buffers.items() if id(tensor) not in self._removed}
        if was.transient & left != now.transient & left:
            yield Fault(f"other buffers of {path!r} are saved than before")

    def _held(self, path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Fault]:
        left = [key for key, tensor in old.items() if id(tensor) not in self._removed]
        if left != [key for key in new if key in old]:
            yield Fault(f"{path!r} has other keys than before: {list(new)}, and had {list(old)}")
            return
        for key, tensor in new.items():
            name = f"{path}.{key}" if path else key
            if old.get(key) is None:
                yield from self._came(name, tensor)
            else:
                yield from self._tensor(name, old[key], tensor)

    def _came(self, name: str, tensor: torch.Tensor | None) -> Iterator[Fault]:
        made = name in self.said.added or _is_constant(name, tensor)
        if tensor is not None and not made:
            yield Fault(f"the tensor {name!r} came")

    def _tensor(self, name: str, old: torch.Tensor, new: torch.Tensor | None) -> Iterator[Fault]:
        cuts = self._cuts.get(id(old), [])
        if new is None:
            yield Fault(f"the tensor {name!r} went")
            return
        if not cuts and id(old) not in self._absorbed:
            if new is not old:
                yield Fault(f"{name!r} is another tensor than before")
            return
        wanted = old.detach()
        for axis, kept in cuts:
            index = torch.tensor(kept, dtype=torch.int64, device=wanted.device)
            wanted = wanted.index_select(axis, index)
        if (new.shape, new.dtype, new.requires_grad) != (
            wanted.shape,
            wanted.dtype,
            old.requires_grad,
        ):
            yield Fault(
                f"{name!r} is {tuple(new.shape)} {new.dtype}, and was to be {tuple(wanted.shape)} "
                f"{wanted.dtype}"
            )
        elif id(old) not in self._absorbed and not same_bits(new.detach(), wanted):
            yield Fault(f"{name!r} does not hold the channels that were to stay")


def _is_constant(name: str, tensor: torch.Tensor | None) -> bool:
    """Tell whether a buffer is one that a cut makes: indices of channels, or a branch's value."""
    plain = name.rstrip("_")
    if tensor is None or isinstance(tensor, torch.nn.Parameter):
        return False
    indices = plain.endswith("_channels") and tensor.dtype is torch.int64
    return indices or plain.endswith(_CONSTANT)


def constants_of(lines: Iterable[Any]) -> set[str]:
    """Return the names of the lines that read tensors which a cut makes."""
    ends = ("_channels", _CONSTANT)
    reads = [line for line in lines if line.op == "get_attr"]
    return {line.name for line in reads if str(line.target).rstrip("_").endswith(ends)}
