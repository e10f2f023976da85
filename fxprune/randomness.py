"""torch's global random generators: whether something drew from them, and leaving them alone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from fxprune.program import Program
from fxprune.quiet import alone

__all__ = ["generator_states", "kept_generators"]


def generator_states(program: Program) -> list[torch.Tensor]:
    """Return the states of the global generators that pruning a Program may draw from."""
    return [generator.get_state() for generator in _generators(program)]


@contextmanager
def kept_generators(program: Program) -> Generator[None]:
    """Put the global generators that pruning a Program may draw from back to where they were."""
    generators = _generators(program)
    with alone():
        states = [generator.get_state() for generator in generators]
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _generators(program: Program) -> list[torch.Generator]:
    """Return the CPU's generator, and that of each other device that holds a parameter."""
    found = [torch.default_generator]
    for device in dict.fromkeys(parameter.device for parameter in program.parameters()):
        module: Any = getattr(torch, device.type, None)
        of_type = getattr(module, "default_generators", ())
        if of_type:
            found.append(of_type[device.index or 0])
    return found
