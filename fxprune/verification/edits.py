"""The tensors that a declared effect leaves in a Program, compared with those that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from fxprune.support import same_bits
from fxprune.verification.snapshot import Effect, Fault, ModuleState, Snapshot


class NewTensor(NamedTuple):
    """A tensor that an effect makes, with the shape, dtype and device of `like`.

    `what` says what its values are, those of `like`; it is empty where scores or runs tell.
    """

    like: torch.Tensor
    trained: bool
    what: str = ""


_Tensors = dict[str, torch.Tensor | NewTensor]


class Expected:
    """The state before, with an effect applied to it; `after` tells what the effect leaves open."""

    def __init__(self, before: Snapshot, after: Snapshot, effect: Effect) -> None:
        self.before, self.after, self.effect = before, after, effect
        self.first = dict(before.first)
        tree = before.tree.items()
        self.parameters: dict[str, _Tensors] = {path: {**p.parameters} for path, p in tree}
        self.buffers: dict[str, _Tensors] = {path: {**p.buffers} for path, p in tree}
        _APPLY[effect.kind](self)

    # Effects

    def mask(self) -> None:
        """Split each P into P_orig, the same tensor, and P_mask."""
        for name in self.effect.names:
            stored, mask = self.before.stored(name)
            if stored is None:
                continue
            for path, key in self._places(name):
                if mask is None:
                    self.parameters[path][f"{key}_orig"] = self.parameters[path].pop(key)
                self.buffers[path][f"{key}_mask"] = NewTensor(stored, trained=False)

    def drop_masks(self) -> None:
        """Put the product, or the stored tensor alone, in the place of P_orig and P_mask."""
        for name in self.effect.names or self.before.masked:
            stored, mask = self.before.stored(name)
            if stored is None or mask is None:
                continue
            made = stored if self.effect.kind == "unmasks" else self._product(stored, mask)
            for path, key in self._places(name):
                self.parameters[path].pop(f"{key}_orig")
                self.parameters[path][key] = made
                self.buffers[path].pop(f"{key}_mask")
        if self.effect.ordered:
            self._sort()

    def _product(self, stored: torch.Tensor, mask: torch.Tensor) -> NewTensor:
        value = torch.mul(stored.detach(), mask)
        if self.effect.zeros == "clean":
            value = torch.where(mask == 0, torch.zeros_like(value), value)
        return NewTensor(value, stored.requires_grad, "the product of its tensor and its mask")

    def _sort(self) -> None:
        """Put the parameters of each module in the source's order, those not read first."""
        ranks = {name: rank for rank, name in enumerate(self.first)}

        def rank(name: str) -> int:
            return ranks.get(name, ranks.get(name.removesuffix("_orig"), -1))

        for path, held in self.parameters.items():
            ordered = sorted(held, key=lambda key, path=path: rank(_join(path, key)))
            self.parameters[path] = {key: held[key] for key in ordered}

    def adopt(self) -> None:
        """Call P_orig P where the graph multiplies it with P_mask, a mask from then on."""
        fresh = {name for name in self.after.first if name not in self.first}

        def adopted_name(name: str) -> str:
            plain = name.removesuffix("_orig")
            return plain if plain in fresh else name

        self.first = {adopted_name(name): adopted_name(first) for name, first in self.first.items()}
        for name in fresh:
            stored, mask = self.before.stored(name)
            if stored is not None and mask is not None:
                path, key = _split(name)
                what = "its mask in the graph before, in the parameter's dtype"
                cast = NewTensor(mask.detach().to(stored.dtype), trained=False, what=what)
                self.buffers[path][f"{key}_mask"] = cast

    def cut(self) -> None:
        """Take out the channels and the tensors that go; biases that absorb get any values."""
        made: dict[int, NewTensor] = {}
        for each in self.effect.cuts:
            for tensor in self._tensors_named(each.tensor):
                whole = made[id(tensor)].like if id(tensor) in made else tensor.detach()
                index = torch.tensor(each.kept, dtype=torch.int64, device=whole.device)
                part = whole.index_select(each.axis, index)
                what = "what it was, less the channels that go"
                made[id(tensor)] = NewTensor(part, tensor.requires_grad, what)
        for tensor in [t for name in self.effect.absorbed for t in self._tensors_named(name)]:
            like = made[id(tensor)].like if id(tensor) in made else tensor.detach()
            made[id(tensor)] = NewTensor(like, tensor.requires_grad)
        removed = [t for name in self.effect.removed for t in self._tensors_named(name)]
        gone = {id(tensor) for tensor in removed}
        first = self.first.items()
        self.first = {n: of for n, of in first if id(self.before.stored(n)[0]) not in gone}
        for state in (self.parameters, self.buffers):
            for path, held in state.items():
                kept = {key: t for key, t in held.items() if id(t) not in gone}
                state[path] = {key: made.get(id(t), t) for key, t in kept.items()}

    def _tensors_named(self, name: str) -> list[torch.Tensor]:
        """Return what a record's name stands for: a parameter with its mask, or a buffer."""
        if name in self.before.first:
            return [t for t in self.before.stored(name) if t is not None]
        path, key = _split(name)
        place = self.before.tree.get(path)
        return [place.buffers[key]] if place is not None and key in place.buffers else []

    def _places(self, name: str) -> list[tuple[str, str]]:
        """Return the module's path and the attribute of each alias of a parameter."""
        first = self.before.first.get(name)
        return [_split(alias) for alias, of in self.before.first.items() if of == first]

    # The difference

    def differences(self) -> Iterator[Fault]:
        """Yield what differs in the state that was found, names first, then module by module."""
        was, now = self.before.tree, self.after.tree
        first = {n: of for n, of in self.after.first.items() if n not in self.effect.added}
        if list(first.items()) != list(self.first.items()):
            yield Fault("the parameters have other names, or another order")
        yield from self._compare_masks()
        for path in [*was, *(path for path in now if path not in was)]:
            if path not in now or path not in was:
                yield Fault(f"the module {path!r} {'went' if path in was else 'came'}")
            else:
                yield from self._compare_modules(path, was[path], now[path])
        if self.before.outputs != self.after.outputs:
            yield Fault("the outputs are nested differently")

    def _compare_masks(self) -> Iterator[Fault]:
        for name, first in self.after.first.items():
            path, key = _split(name)
            mask = self.after.stored(name)[1]
            wanted = f"{key}_mask" in self.buffers.get(path, ()) and name in self.first
            if name == first and wanted != (mask is not None):
                have, to_have = ("no mask", "one") if wanted else ("a mask", "none")
                yield Fault(f"{name!r} has {have}, and was to have {to_have}")

    def _compare_modules(self, path: str, was: ModuleState, now: ModuleState) -> Iterator[Fault]:
        if (was.kind, was.training) != (now.kind, now.training):
            yield Fault(f"the module {path!r} has another class or training flag")
        parameters, buffers = self.parameters[path], self.buffers[path]
        yield from self._compare_tensors("parameters", path, parameters, now.parameters)
        yield from self._compare_tensors("buffers", path, buffers, now.buffers)
        if was.transient & buffers.keys() != now.transient & buffers.keys():
            yield Fault(f"other buffers of {path!r} are saved than before")

    def _compare_tensors(
        self, what: str, path: str, wanted: _Tensors, found: Mapping[str, torch.Tensor]
    ) -> Iterator[Fault]:
        names = {key: _join(path, key) for key in [*wanted, *found]}
        keys = [k for k, t in found.items() if k in wanted or not self._may_come(names[k], t)]
        if keys != list(wanted):
            yield Fault(f"the {what} of {path!r} are {keys}, and were to be {list(wanted)}")
        for key, tensor in wanted.items():
            fault = _tensor_fault(tensor, found[key]) if key in found else None
            if fault is not None:
                yield Fault(f"{names[key]!r} {fault}")

    def _may_come(self, name: str, tensor: torch.Tensor) -> bool:
        constant = not isinstance(tensor, torch.nn.Parameter) and is_constant(name, tensor)
        return name in self.effect.added or (self.effect.shrinks and constant)


_APPLY: Mapping[str, Callable[[Expected], None]] = {
    "masks": Expected.mask,
    "folds": Expected.drop_masks,
    "unmasks": Expected.drop_masks,
    "adopts": Expected.adopt,
    "cuts": Expected.cut,
    "constants": Expected.cut,
}


def is_constant(name: str, tensor: torch.Tensor | None = None) -> bool:
    """Tell whether a buffer is one that a cut makes: indices of channels, or a branch's value."""
    plain = name.rstrip("_")
    indices = plain.endswith("_channels") and (tensor is None or tensor.dtype is torch.int64)
    return indices or plain.endswith("_constant")


def _tensor_fault(wanted: torch.Tensor | NewTensor, found: torch.Tensor) -> str | None:
    if isinstance(wanted, torch.Tensor):
        return None if found is wanted else "is another tensor than before"
    kinds = [f"{tuple(t.shape)} {t.dtype} {t.device}" for t in (found, wanted.like)]
    if kinds[0] != kinds[1]:
        return f"is {kinds[0]}, and was to be {kinds[1]}"
    if found.requires_grad != wanted.trained:
        return f"has requires_grad={found.requires_grad}, and was to have {wanted.trained}"
    if wanted.what and not same_bits(found.detach(), wanted.like):
        return f"is not {wanted.what}, bit for bit"
    return None


def _split(name: str) -> tuple[str, str]:
    path, _, key = name.rpartition(".")
    return path, key


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
