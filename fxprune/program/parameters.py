"""The parameters and masks of a Program by name.

Functions, not methods: a source may have a submodule called `value` or `parameter`, and then that
is what the attribute of the Program means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from fxprune.errors import MissingParameterError, PassTypeError
from fxprune.shards import is_sharded, like
from fxprune.shell import mask_of, raw_parameter, submodule
from fxprune.wording import did_you_mean

if TYPE_CHECKING:
    from fxprune.program import Program

__all__ = [
    "Handle",
    "Masks",
    "Parameters",
    "aliases",
    "masks",
    "owner",
    "parameter",
    "parameters_of",
    "quoted",
    "value",
]


@dataclass(frozen=True)
class Handle:
    """A parameter of a Program, as it is when it is asked.

    Args:
        program: the Program.
        name: any of the parameter's names.
    """

    program: Program
    name: str

    @property
    def stored(self) -> nn.Parameter:
        """The Parameter: the original one, where it is masked.

        Raises:
            MissingParameterError: it was taken out of the Program.
        """
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

    def __init__(self, program: Program) -> None:
        self._program = program

    def __getitem__(self, name: str) -> Handle:
        owner(self._program, name)
        return Handle(self._program, name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self._program.captured.first.values()))

    def __len__(self) -> int:
        return len(set(self._program.captured.first.values()))


def parameters_of(program: Program) -> Parameters:
    """Return the parameters of a Program by name."""
    return Parameters(program)


def aliases(program: Program) -> dict[str, tuple[str, ...]]:
    """Return every parameter's names, keyed by the first of them, in the source's order."""
    groups: dict[str, list[str]] = {}
    for name, first in program.captured.first.items():
        groups.setdefault(first, []).append(name)
    return {first: tuple(group) for first, group in groups.items()}


def owner(program: Program, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a parameter, and the attribute's name there.

    Raises:
        MissingParameterError: there is no such parameter; suggests the nearest.
    """
    known = program.captured.first
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PassTypeError(f"a parameter's name must be a str, not {name!r}")
    path, _, attribute = name.rpartition(".")
    if name in known:
        return submodule(program, path), attribute
    hint = did_you_mean(name, known, f"there are {quoted(known)}")
    raise MissingParameterError(f"the program has no parameter {name!r}; {hint}")


def parameter(program: Program, name: str) -> nn.Parameter:
    """Return the Parameter behind a name: the original one, where it is masked.

    Raises:
        MissingParameterError: there is no such parameter.
    """
    return Handle(program, name).stored


def value(program: Program, name: str) -> torch.Tensor:
    """Return a parameter's current value, masked where it has a mask, without gradient."""
    return Handle(program, name).value


def masks(program: Program) -> Masks:
    """Return the masks by parameter name."""
    return Masks(program)


class Masks(Mapping[str, torch.Tensor]):
    """A Program's masks by parameter name: iterates first names, finds any alias."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._program.captured.first:
            raise KeyError(name)
        mask = mask_of(*owner(self._program, name))
        if mask is None:
            raise KeyError(name)
        return mask

    def __iter__(self) -> Iterator[str]:
        firsts = dict.fromkeys(self._program.captured.first.values())
        return iter(tuple(name for name in firsts if self._has(name)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Masks({', '.join(self)})"

    def _has(self, name: str) -> bool:
        return mask_of(*owner(self._program, name)) is not None


def quoted(names: Mapping[str, object] | tuple[str, ...] | list[str]) -> str:
    """Return the first names in quotes, for a message."""
    shown = [repr(name) for name in list(names)[:6]]
    return ", ".join(shown) + (", ..." if len(names) > 6 else "")
