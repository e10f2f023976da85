"""Shrink a Program and hold the result to it: what the tests of shrink share."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.compiler.shrinking import shrink
from fxprune.program.program import Program
from fxprune.program.records import ShrinkRecord

# Fewer addends are summed in another order: in float64 that moves the last bits alone.
BOUND = 1e-9


def gap(program: Program, small: Program, batches: tuple[int, ...] = (2, 5)) -> float:
    """Return the largest difference in eval mode, by the scale of the outputs."""
    largest = 0.0
    for batch in batches:
        args, kwargs = program.example(batch=batch, seed=batch)
        with torch.no_grad():
            pairs = zip(_leaves(program, args, kwargs), _leaves(small, args, kwargs), strict=True)
            for before, after in pairs:
                assert before.shape == after.shape
                scale = max(1.0, float(before.abs().max()))
                largest = max(largest, float((before - after).abs().max()) / scale)
    return largest


def _leaves(program: Program, args: Any, kwargs: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(program.eval()(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def shrink_and_check(program: Program, **options: Any) -> tuple[Program, ShrinkRecord]:
    """Shrink, hold the result to the program, and return it with its record."""
    small = shrink(program, **options)
    assert gap(program, small) < BOUND
    return small, small.captured.shrinks[-1]


def cuts(record: ShrinkRecord) -> dict[tuple[str, int], tuple[int, ...]]:
    """Return the channels kept, by tensor and axis."""
    return {(each.tensor, each.axis): each.kept for each in record.maps}


def parameters(program: Program) -> int:
    """Return how many entries all parameters have."""
    return sum(parameter.numel() for parameter in program.parameters())


def record_text(record: ShrinkRecord) -> str:
    """Return a record as text without what differs from run to run."""
    lines = [
        f"cut {each.tensor} {each.axis}: {each.before} -> {each.after} {_short(each.kept)}"
        for each in record.maps
    ]
    lines += [
        f"stays {each.tensor} {each.axis}: {each.count}, {each.reason} ({each.node})"
        for each in record.stays
        if each.tensor.startswith("stem") and each.axis == 0
    ]
    lines += [f"blocked by {each.node}: {each.reason}" for each in record.blocked]
    lines += [f"absorbed by {name}" for name in record.absorbed]
    lines += [f"added {name}" for name in record.added]
    lines += [f"folded {name}" for name in record.folded]
    lines += [f"removed {name}" for name in record.removed]
    return "\n".join([*lines, *(note.partition(" (")[0] for note in record.notes)])


def _short(kept: tuple[int, ...]) -> str:
    return str(list(kept)) if len(kept) <= 16 else f"{list(kept[:8])} and more"
