"""Holds the tree of modules after a pass, its tensors and keys, to what the pass says it edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.announced import Announced, Fault
from fxprune.bits import same_bits
from fxprune.snapshot import Place, Snapshot

__all__ = ["Tree", "written_faults"]


@dataclass
class Tree:
    """Holds the tree of modules after a pass to what it has to be."""

    before: Snapshot
    after: Snapshot
    said: Announced

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong in the tree."""
        if self.said.edits != "adopts":
            yield from self._names()
        yield from self._parameters()
        for path, place in self.after.tree.items():
            was = self.before.tree.get(path)
            if was is None:
                yield Fault(f"the module {path!r} came")
            else:
                yield from self._place(path, was, place)
        for path in self.before.tree:
            if path not in self.after.tree:
                yield Fault(f"the module {path!r} went")
        if self.before.outputs != self.after.outputs:
            yield Fault("outputs are nested otherwise")

    def _names(self) -> Iterator[Fault]:
        if list(self.before.first.items()) != list(self.after.first.items()):
            yield Fault("the parameters have other names, or another order")
        was, now = set(self.before.masked), set(self.after.masked)
        named = {self.before.first.get(name, name) for name in self.said.names}
        wanted = was | named if self.said.edits == "masks" else was - (named or was)
        for name in [*(n for n in self.after.masked if n not in wanted)]:
            what = "got a mask and was not" if self.said.edits == "masks" else "keeps its mask, and"
            yield Fault(f"{name!r} {what} {'to get one' if 'got' in what else 'was to lose it'}")
        for name in sorted(wanted - now):
            yield Fault(f"{name!r} was to have a mask, and has none")

    def _parameters(self) -> Iterator[Fault]:
        """Yield parameters that are not what they were, or not what they were to become."""
        for name in self.after.first:
            if name not in self.before.first:
                continue
            stored, mask = self.before.stored(name)
            now, new_mask = self.after.stored(name)
            if stored is None or now is None:
                yield Fault(f"{name!r} has no tensor")
                continue
            lost = mask is not None and new_mask is None
            if lost and self.said.edits == "folds":
                yield from self._folded(name, stored, mask, now)
            elif now is not stored:
                yield Fault(f"{name!r} is another tensor than before")
            if new_mask is not None:
                yield from self._mask(name, now, mask, new_mask)
            yield from self._alias(name, now, new_mask)

    def _folded(
        self, name: str, stored: torch.Tensor, mask: Any, now: torch.Tensor
    ) -> Iterator[Fault]:
        wanted = torch.mul(stored.detach(), mask)
        if self.said.zeros == "clean":
            wanted = torch.where(mask == 0, torch.zeros_like(wanted), wanted)
        if not same_bits(now.detach(), wanted):
            yield Fault(f"{name!r} is not the product of its tensor and its mask, bit for bit")
        if now.requires_grad != stored.requires_grad:
            yield Fault(f"{name!r} is trained otherwise than before")

    def _mask(
        self, name: str, stored: torch.Tensor, old: Any, mask: torch.Tensor
    ) -> Iterator[Fault]:
        if (mask.shape, mask.dtype, mask.device) != (stored.shape, stored.dtype, stored.device):
            kinds = [f"{tuple(t.shape)} {t.dtype} {t.device}" for t in (mask, stored)]
            yield Fault(f"the mask of {name!r} is {kinds[0]}, the parameter {kinds[1]}")
        if mask.requires_grad:
            yield Fault(f"the mask of {name!r} is trained")
        if self.said.edits in ("folds", "unmasks") and mask is not old:
            yield Fault(f"the mask of {name!r} is another one than before")

    def _alias(self, name: str, now: torch.Tensor, mask: Any) -> Iterator[Fault]:
        first = self.after.first[name]
        own, own_mask = self.after.stored(first)
        if own is not now or own_mask is not mask:
            yield Fault(f"{name!r} and {first!r} are one parameter, but not one tensor and mask")

    def _place(self, path: str, was: Place, now: Place) -> Iterator[Fault]:
        if (was.kind, was.training) != (now.kind, now.training):
            yield Fault(f"the module {path!r} has another class or training flag")
        wanted = _KEYS[self.said.edits](self, path, was)
        # Where a key without a tensor stands is of no concern: no state dict has it.
        empty = {key for key, tensor in was.parameters.items() if tensor is None}
        for what, keys, found in (
            ("parameters", wanted[0], list(now.parameters)),
            ("buffers", wanted[1], list(now.buffers)),
        ):
            keys, found = ([key for key in some if key not in empty] for some in (keys, found))
            if keys != found:
                yield Fault(f"the {what} of {path!r} are {found}, and were to be {keys}")
        for key in empty:
            if now.parameters.get(key) is not None:
                yield Fault(f"the tensor {_joined(path, key)!r} came")
        masks = {f"{n.rpartition('.')[2]}_mask" for n in self._masked_at(path)}
        for key, buffer in now.buffers.items():
            if key in was.buffers and was.buffers[key] is not buffer and key not in masks:
                yield Fault(f"the buffer {_joined(path, key)!r} is another one than before")
        if was.transient - masks != now.transient - masks or now.transient & masks:
            yield Fault(f"other buffers of {path!r} are saved than before")

    def _masked_at(self, path: str) -> list[str]:
        state = self.after
        names = [n for n in state.first if n.rpartition(".")[0] == path]
        return [n for n in names if state.stored(n)[1] is not None]

    # The keys that a module is to have, and their order: torch.nn.utils.prune's

    def masking(self, path: str, was: Place) -> tuple[list[str], list[str]]:
        """Return the keys of parameters and buffers after parameters got masks."""
        parameters, buffers = list(was.parameters), list(was.buffers)
        order = [self.before.first[n] for n in self.said.names]
        names = {n.rpartition(".")[2]: self.before.first[n] for n in self._masked_at(path)}
        fresh = [key for key in names if key in parameters]
        for key in sorted(fresh, key=lambda k: order.index(names[k]) if names[k] in order else 0):
            parameters.remove(key)
            parameters.append(f"{key}_orig")
            buffers += [f"{key}_mask"] if f"{key}_mask" not in buffers else []
        return parameters, buffers

    def unmasking(self, path: str, was: Place) -> tuple[list[str], list[str]]:
        """Return the keys of parameters and buffers after masks went."""
        plain = [n for n in self.before.first if n.rpartition(".")[0] == path]
        lost = [n for n in plain if self._lost(n)]
        keys = {n.rpartition(".")[2] for n in lost}
        buffers = [
            key
            for key in was.buffers
            if key.removesuffix("_mask") not in keys or not key.endswith("_mask")
        ]
        parameters = [k for k in was.parameters if k.removesuffix("_orig") not in keys]
        names = [n.rpartition(".")[2] for n in plain]
        if self.said.ordered:
            there = {*parameters, *keys}
            ordered = [key if key in there else f"{key}_orig" for key in names]
            unread = [key for key in parameters if key not in ordered]
            return [*unread, *ordered], buffers
        return [*parameters, *(k for k in self._in_order(lost))], buffers

    def _in_order(self, lost: list[str]) -> list[str]:
        """Return the attributes that lost a mask, as they were folded."""
        named = [self.before.first[n] for n in self.said.names] or list(self.before.masked)
        return [
            n.rpartition(".")[2]
            for n in sorted(lost, key=lambda n: named.index(self.before.first[n]))
        ]

    def _lost(self, name: str) -> bool:
        return self.before.stored(name)[1] is not None and self.after.stored(name)[1] is None

    def adopting(self, path: str, was: Place) -> tuple[list[str], list[str]]:
        """Return the keys of parameters and buffers after adoption: the same, in any order."""
        now = self.after.tree[path]
        same = sorted(was.parameters) == sorted(now.parameters)
        parameters = list(now.parameters) if same else list(was.parameters)
        return parameters, list(was.buffers)


def written_faults(before: Snapshot) -> Iterator[Fault]:
    """Yield tensors that were there before and were written to since: callers hold them too.

    Args:
        before: the Program as a pass found it.
    """
    for path, place in before.tree.items():
        for key, tensor in (*place.parameters.items(), *place.buffers.items()):
            if tensor is None or tensor.is_inference():
                continue
            if tensor._version != before.versions[id(tensor)]:
                yield Fault(f"the tensor {_joined(path, key)!r} was written to")


_Keys = Callable[[Tree, str, Place], tuple[list[str], list[str]]]
_KEYS: Mapping[str, _Keys] = {
    "masks": Tree.masking,
    "folds": Tree.unmasking,
    "unmasks": Tree.unmasking,
    "adopts": Tree.adopting,
}


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
