"""A small input on which two models still differ: fewer rows, and zeros, while they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.inputs import InputSpec
from fxprune.trials import Trial
from fxprune.wording import dtype_name

__all__ = ["minimised"]

_RUNS = 80  # how many smaller inputs are tried at most
_SHOWN = 8  # how many entries are written out


def minimised(trial: Trial, differs: Callable[[Trial], bool], spec: InputSpec | None) -> str:
    """Return, as text, a small input on which two models differ.

    Args:
        trial: an input on which they do.
        differs: tells whether they do on another one.
        spec: which dimensions are the batch's; None to leave shapes as they are.
    """
    left = [_RUNS]

    def holds(leaves: list[Any]) -> bool:
        left[0] -= 1
        return left[0] >= 0 and differs(_with(trial, leaves))

    leaves = pytree.tree_leaves((trial.args, trial.kwargs))
    leaves = _fewer_rows(leaves, spec, holds)
    leaves = _zeroed(leaves, holds)
    return ", ".join(_told(leaves, spec)) or "any input, as there is none"


def _with(trial: Trial, leaves: list[Any]) -> Trial:
    tree = pytree.tree_structure((trial.args, trial.kwargs))
    args, kwargs = pytree.tree_unflatten(leaves, tree)
    return replace(trial, args=args, kwargs=kwargs)


def _fewer_rows(
    leaves: list[Any], spec: InputSpec | None, holds: Callable[[list[Any]], bool]
) -> list[Any]:
    """Leave out rows of the batch: all but one where that will do, else half after half."""
    if spec is None or len(spec.inputs) != len(leaves):
        return leaves
    for symbol in spec.symbols:
        size = _size(leaves, spec, symbol)
        singles = [(i, i + 1) for i in range(min(size, 4))]
        for start, stop in (*singles, *_halves(size)):
            if stop - start >= _size(leaves, spec, symbol):
                continue
            fewer = [
                _sliced(leaf, at.shape, symbol, start, stop)
                for leaf, at in zip(leaves, spec.inputs, strict=True)
            ]
            if holds(fewer):
                leaves = fewer
                break
    return leaves


def _halves(size: int) -> Iterator[tuple[int, int]]:
    while size > 2:
        size = math.ceil(size / 2)
        yield 0, size


def _size(leaves: list[Any], spec: InputSpec, symbol: str) -> int:
    for leaf, at in zip(leaves, spec.inputs, strict=True):
        if isinstance(leaf, torch.Tensor) and symbol in at.shape:
            return leaf.shape[at.shape.index(symbol)]
    return 0


def _sliced(leaf: Any, shape: tuple[Any, ...], symbol: str, start: int, stop: int) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    for dim, of in enumerate(shape):
        if not isinstance(of, str) or of.rpartition("*")[2] != symbol:
            continue
        factor = int(of.rpartition("*")[0] or 1)
        leaf = leaf.narrow(dim, start * factor, (stop - start) * factor)
    return leaf


def _zeroed(leaves: list[Any], holds: Callable[[list[Any]], bool]) -> list[Any]:
    """Set entries to zero, in ever smaller runs, while the difference stays."""
    for at, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor) or leaf.numel() == 0:
            continue
        size = leaf.numel()
        while size >= 1:
            for start in range(0, leaf.numel(), size):
                current = leaves[at]
                flat = current.reshape(-1).clone()
                if not bool(flat[start : start + size].any()):
                    continue
                flat[start : start + size] = 0
                tried = [*leaves[:at], flat.view(current.shape), *leaves[at + 1 :]]
                if holds(tried):
                    leaves = tried
            size //= 2
            if leaf.numel() // max(size, 1) > _RUNS:
                break
    return leaves


def _told(leaves: list[Any], spec: InputSpec | None) -> Iterator[str]:
    named = spec is not None and len(spec.inputs) == len(leaves)
    for i, leaf in enumerate(leaves):
        name = spec.inputs[i].name if named and spec is not None else f"input {i}"
        if isinstance(leaf, torch.Tensor):
            kind = f"{dtype_name(leaf.dtype)}{list(leaf.shape)}"
            yield f"{name}: {kind} {_entries(leaf)}"


def _entries(leaf: torch.Tensor) -> str:
    """Return the entries of a tensor that are not zero, by their index."""
    at = leaf.nonzero()
    if len(at) == 0:
        return "of zeros"
    if len(at) > _SHOWN:
        return f"with {len(at):,} entries other than zero"
    values = (f"{list(map(int, i))}: {leaf[tuple(i)].item():.9g}" for i in at)
    return f"of zeros but {', '.join(values)}"
