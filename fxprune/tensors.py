"""The parameters and masks of a Program by name.

Functions, not methods: a source may have a submodule called `value` or `parameter`, and then that
is what the attribute of the Program means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from fxprune.errors import MissingParameterError, PassTypeError
from fxprune.shards import like
from fxprune.shell import mask_of, raw_parameter, submodule
from fxprune.wording import did_you_mean

if TYPE_CHECKING:
    from fxprune.program import Program

__all__ = ["Masks", "aliases", "masks", "owner", "parameter", "quoted", "value"]


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
    found = raw_parameter(*owner(program, name))
    if found is None:
        raise MissingParameterError(f"the parameter {name!r} was taken out of the program")
    return found


def value(program: Program, name: str) -> torch.Tensor:
    """Return a parameter's current value, masked where it has a mask, without gradient."""
    mask = masks(program).get(name)
    raw = parameter(program, name).detach()
    return raw if mask is None else raw * like(mask, raw)


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
