"""Inputs that fit a Program, drawn from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxprune.program import Program

__all__ = ["example_of"]


def example_of(
    program: Program, *, batch: int = 2, seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Draw `(args, kwargs)` that fit, in the Program's own dtype and on its device.

    Args:
        program: any Program.
        batch: the size of every symbolic dimension.
        seed: seed of a private generator.
    """
    dtypes = (p.dtype for p in program.parameters() if p.is_floating_point())
    return program.captured.inputs.example(
        batch=batch, seed=seed, dtype=next(dtypes, None), device=program.device
    )
