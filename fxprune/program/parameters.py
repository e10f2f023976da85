"""The parameters and masks of a Program by name, and its module tree without the source's code.

Functions, not methods: a source may have a submodule called `value` or `parameter`, and then that
is what the attribute of the Program means.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.errors import MissingParameterError, PassTypeError
from fxprune.program.captured import CapturedModule
from fxprune.program.spread import is_sharded, like
from fxprune.words import did_you_mean


@dataclass(frozen=True)
class Handle:
    """A parameter of a Program, as it is when it is asked.

    Args:
        program: the Program.
        name: any of the parameter's names.
    """

    program: CapturedModule
    name: str

    @property
    def stored(self) -> nn.Parameter:
        """The Parameter, the original one where masked; MissingParameterError if taken out."""
        found = raw_parameter(*owner(self.program, self.name))
        if found is None:
            raise MissingParameterError(f"the parameter {self.name!r} was taken out of the program")
        return found

    @property
    def mask(self) -> torch.Tensor | None:
        """Its mask; None where it is not masked."""
        return mask_of(*owner(self.program, self.name))

    @property
    def value(self) -> torch.Tensor:
        """Its current value, masked where it has a mask, without gradient."""
        mask, raw = self.mask, self.stored.detach()
        return raw if mask is None else raw * like(mask, raw)

    @property
    def aliases(self) -> tuple[str, ...]:
        """All its names, the first one first."""
        known = self.program.captured.first
        return tuple(name for name in known if known[name] == known[self.name])

    @property
    def is_spread(self) -> bool:
        """Whether it is a DTensor, of which this process holds a part."""
        return is_sharded(self.stored)

    def copy_mask(self) -> torch.Tensor:
        """Return a copy of its mask, of ones where it has none; contiguous, as torch's are."""
        mask, stored = self.mask, self.stored
        if mask is None:
            return torch.ones(stored.shape, dtype=stored.dtype, device=stored.device)
        return mask.detach().clone(memory_format=torch.contiguous_format)


class Parameters(Mapping[str, Handle]):
    """A Program's parameters by name: iterates first names, finds any alias.

    Looking one up raises MissingParameterError, which suggests the nearest name.
    """

    def __init__(self, program: CapturedModule) -> None:
        self._program = program

    def __getitem__(self, name: str) -> Handle:
        owner(self._program, name)
        return Handle(self._program, name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self._program.captured.first.values()))

    def __len__(self) -> int:
        return len(set(self._program.captured.first.values()))


def parameters_of(program: CapturedModule) -> Parameters:
    """Return the parameters of a Program by name."""
    return Parameters(program)


def aliases(program: CapturedModule) -> dict[str, tuple[str, ...]]:
    """Return every parameter's names, keyed by the first of them, in the source's order."""
    groups: dict[str, list[str]] = {}
    for name, first in program.captured.first.items():
        groups.setdefault(first, []).append(name)
    return {first: tuple(group) for first, group in groups.items()}


def owner(program: CapturedModule, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a parameter, and the attribute's name there.

    MissingParameterError suggests the nearest name.
    """
    known = program.captured.first
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PassTypeError(f"a parameter's name must be a str, not {name!r}")
    path, _, attribute = name.rpartition(".")
    if name in known:
        return submodule(program, path), attribute
    hint = did_you_mean(name, known, f"there are {quote(known)}")
    raise MissingParameterError(f"the program has no parameter {name!r}; {hint}")


def parameter(program: CapturedModule, name: str) -> nn.Parameter:
    """Return the Parameter behind a name: the original one, where it is masked."""
    return Handle(program, name).stored


def value(program: CapturedModule, name: str) -> torch.Tensor:
    """Return a parameter's current value, masked where it has a mask, without gradient."""
    return Handle(program, name).value


def masks(program: CapturedModule) -> Masks:
    """Return the masks by parameter name."""
    return Masks(program)


class Masks(Mapping[str, torch.Tensor]):
    """A Program's masks by parameter name: iterates first names, finds any alias."""

    def __init__(self, program: CapturedModule) -> None:
        self._program = program

    def __getitem__(self, name: str) -> torch.Tensor:
        mask = Handle(self._program, name).mask if name in self._program.captured.first else None
        if mask is None:
            raise KeyError(name)
        return mask

    def __iter__(self) -> Iterator[str]:
        handles = Parameters(self._program).items()
        return iter([name for name, held in handles if held.mask is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Masks({', '.join(self)})"


def quote(names: Mapping[str, object] | tuple[str, ...] | list[str]) -> str:
    """Return the first names in quotes, for a message."""
    shown = [repr(name) for name in list(names)[:6]]
    return ", ".join(shown) + (", ..." if len(names) > 6 else "")


class MaskedReads(nn.Module):
    """A module whose masked parameters read as their current product with the mask.

    A masked parameter `P` is stored as Parameter `P_orig` and buffer `P_mask`, the names that
    torch.nn.utils.prune gives. Nothing is cached, so a read is never stale.
    """

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__
        # A graph reads each tensor by its path: the common cases first.
        for kind in ("_modules", "_parameters", "_buffers"):
            if kind in state and name in state[kind]:
                return state[kind][name]
        orig = state.get("_parameters", {}).get(f"{name}_orig")
        mask = state.get("_buffers", {}).get(f"{name}_mask")
        if orig is not None and mask is not None:
            return orig * like(mask, orig)
        return super().__getattr__(name)


class TreeModule(MaskedReads):
    """A place in the module tree: holds what the source's module held, and its class name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._fxprune_kind = kind

    def _get_name(self) -> str:
        return self._fxprune_kind

    def __deepcopy__(self, memo: dict[int, Any]) -> TreeModule:
        # Most of what a module holds are dicts of hooks without any, which are dear to take apart.
        made = memo[id(self)] = type(self).__new__(type(self))
        for key, value in vars(self).items():
            empty = isinstance(value, (dict, set)) and not value
            vars(made)[key] = value.copy() if empty else copy.deepcopy(value, memo)
        return made


def kind_of(module: nn.Module) -> str:
    """Return the class name of the source's module that a part of a Program stands for."""
    return module._fxprune_kind if isinstance(module, TreeModule) else type(module).__name__


def tree_of(module: nn.Module, made: dict[int, TreeModule] | None = None) -> TreeModule:
    """Build the tree that shares a module's tensors under the same names and order."""
    made = {} if made is None else made
    if id(module) in made:
        return made[id(module)]
    tree = made[id(module)] = TreeModule(type(module).__name__)
    tree._parameters = dict(module._parameters)
    tree._buffers = dict(module._buffers)
    tree._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    tree.training = module.training
    for name, child in module._modules.items():
        tree._modules[name] = None if child is None else tree_of(child, made)
    return tree


def submodule(root: nn.Module, path: str) -> nn.Module:
    """Return what `root.get_submodule(path)` does, without its failing look-ups at each step."""
    found = root
    for part in path.split(".") if path else ():
        child = found._modules.get(part)
        if child is None:
            return root.get_submodule(path)
        found = child
    return found


def raw_parameter(owner: nn.Module, attribute: str) -> nn.Parameter | None:
    """Return the Parameter object behind a name, masked or not; None where there is none."""
    found = owner._parameters.get(attribute)
    return owner._parameters.get(f"{attribute}_orig") if found is None else found


def mask_of(owner: nn.Module, attribute: str) -> torch.Tensor | None:
    """Return the mask of a parameter; None where it is not masked."""
    # A source may itself have P, P_orig and P_mask: then P is a plain parameter.
    if owner._parameters.get(attribute) is not None:
        return None
    if owner._parameters.get(f"{attribute}_orig") is None:
        return None
    return owner._buffers.get(f"{attribute}_mask")
