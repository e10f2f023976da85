"""Capture of what torch.export cannot take whole: by regions, with the Python code around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.batching import Batched
from fxprune.errors import CaptureError, UnexportableError
from fxprune.frontend import capture_module, examples_of, obstacle_in
from fxprune.inputs import Input, InputSpec
from fxprune.merging import merged
from fxprune.nesting import Nesting
from fxprune.program import Program
from fxprune.recording import Arguments, Call, copied, parameters_read, ran, recorded_calls
from fxprune.regional import RegionalProgram
from fxprune.regions import Finder, first_difference
from fxprune.rows import RowSpec
from fxprune.source import HookedMask, copy_model, unhook

__all__ = ["capture_any"]


def capture_any(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: Any
) -> tuple[Program, tuple[HookedMask, ...]]:
    """Capture a model whole where torch.export takes it, else by regions; see `capture_module`.

    Raises:
        CaptureError: it cannot be captured in either way.
    """
    try:
        return capture_module(model, args, kwargs, batch)
    except UnexportableError as error:
        return _by_regions(model, args, kwargs, batch, error)


def _by_regions(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    batch: Any,
    refusal: UnexportableError,
) -> tuple[RegionalProgram, tuple[HookedMask, ...]]:
    source = copy_model(model)
    masks = unhook(source)
    example = _runnable(source, examples_of(source, args, dict(kwargs), batch))
    if example is None:
        raise refusal
    inputs = [(example.args, example.kwargs)]
    twice = _doubled(example)
    if twice is not None:
        inputs.append(twice)
    obstacle = obstacle_in(source, refusal)
    calls = recorded_calls(source, inputs)
    finder = Finder(source, calls)
    finder.descend("", source, obstacle)
    if not finder.found:
        raise UnexportableError(f"{refusal}{_also(finder)}") from refusal.__cause__
    refused = _Reasons(source, finder, calls, inputs).all()
    dense = copy_model(source)
    program = merged(source, finder.found, _spec(dense, example), refused, obstacle)
    wrong = first_difference(dense, program, [Call(*given) for given in inputs])
    if wrong is not None:
        raise CaptureError(
            f"{type(model).__name__} cannot be captured whole, nor by regions: {wrong}\n{refusal}"
        ) from refusal
    return program, masks


def _also(finder: Finder) -> str:
    """Say why no submodule could be captured either."""
    parts = [(path, obstacle) for path, obstacle in finder.kept.items() if path]
    lines = [
        f"\n  nor its submodule {path}: "
        + (
            "it was not called with the example"
            if found is None
            else f"{found.reason} ({found.place})"
        )
        for path, found in parts[:3]
    ]
    return "".join(lines) + (f"\n  nor {len(parts) - 3} more" if parts[3:] else "")


def _runnable(source: nn.Module, examples: Sequence[Batched]) -> Batched | None:
    """Return the first example that the model itself takes."""
    for example in examples:
        given = (example.args, example.kwargs)
        if any(ran(copy_model(source), given, training=mode) for mode in (True, False)):
            return example
    return None


def _doubled(example: Batched) -> Arguments | None:
    """Return the example with each row twice; None where no dimension is the batch."""
    if not example.shared:
        return None
    leaves, tree = pytree.tree_flatten((example.args, example.kwargs))
    for i in example.shared:
        leaves[i] = torch.cat([leaves[i], leaves[i]], example.dims[i] or 0)
    args, kwargs = pytree.tree_unflatten(leaves, tree)
    return tuple(args), dict(kwargs)


def _spec(source: nn.Module, example: Batched) -> InputSpec:
    given = (example.args, example.kwargs)
    leaves = pytree.tree_leaves(given)
    inputs = tuple(
        _input(label, leaf, example.dims[i] if i in example.shared else None)
        for i, (label, leaf) in enumerate(zip(example.labels, leaves, strict=True))
    )
    dtypes = (p.dtype for p in source.parameters() if p.is_floating_point())
    return RowSpec(
        inputs,
        Nesting(given),
        example.names,
        tuple(example.kwargs),
        example.positional,
        next(dtypes, None),
        rows=tuple(copied(leaves)),
    )


def _input(label: str, leaf: Any, dim: int | None) -> Input:
    if not isinstance(leaf, torch.Tensor):
        return Input(label, constant=leaf)
    shape = tuple("batch" if at == dim else size for at, size in enumerate(leaf.shape))
    if leaf.is_floating_point() or leaf.is_complex() or not leaf.numel() or leaf.is_meta:
        return Input(label, shape, leaf.dtype)
    return Input(label, shape, leaf.dtype, int(leaf.min()), int(leaf.max()))


@dataclass(frozen=True)
class _Reasons:
    """Tells why no mask can stand for a parameter."""

    source: nn.Module
    finder: Finder
    calls: Mapping[str, list[Call]]
    inputs: list[Arguments]

    def all(self) -> dict[str, str]:
        """Return the reasons by first name."""
        source, regions = self.source, tuple(self.finder.found)
        inside = {id(m) for path in regions for m in source.get_submodule(path).modules()}
        read = parameters_read(source, regions, self.inputs)
        first: dict[int, str] = {}
        refused: dict[str, str] = {}
        for name, parameter in source.named_parameters(remove_duplicate=False):
            known = first.setdefault(id(parameter), name)
            owner = source.get_submodule(name.rpartition(".")[0])
            if known in read or id(owner) not in inside:
                refused.setdefault(known, self._reason(name, used=known in read))
        return refused

    def _reason(self, name: str, *, used: bool) -> str:
        owner = name.rpartition(".")[0]
        if not used and not self.calls.get(owner):
            return "its module was not called with the example, so that no graph reads it"
        obstacle = next(found for at in _upwards(owner) if (found := self.finder.kept.get(at)))
        return f"it is read by Python code that torch.export cannot take ({obstacle.place})"


def _upwards(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)] + [""]
