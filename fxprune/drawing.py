"""Inputs that fit a Program, drawn from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fxprune.program import Program

__all__ = ["example_of", "own_dtype"]


def example_of(
    program: Program, *, batch: int = 2, seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Draw `(args, kwargs)` that fit, in the Program's own dtype and on its device.

    Args:
        program: any Program.
        batch: the size of every symbolic dimension.
        seed: seed of a private generator.
    """
    return program.captured.inputs.example(
        batch=batch, seed=seed, dtype=own_dtype(program), device=program.device
    )


def own_dtype(program: Program) -> torch.dtype | None:
    """Return the floating dtype that a Program is in now; None where it has no such parameter."""
    return next((p.dtype for p in program.parameters() if p.is_floating_point()), None)
