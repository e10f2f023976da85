"""Find the largest submodules that torch.export takes, where it does not take the whole model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.batching import Batched, exact
from fxprune.differences import Holder
from fxprune.errors import CaptureError, InputError
from fxprune.frontend import capture_source, obstacle_in
from fxprune.obstacles import Obstacle, forward_of
from fxprune.parts import can_be_part
from fxprune.program import Program
from fxprune.recording import Call, copied, twins
from fxprune.reserved import check_names
from fxprune.source import copy_model, with_flags
from fxprune.trials import reproducible

__all__ = ["Finder", "Found", "first_difference"]


@dataclass(frozen=True)
class Found:
    """A captured submodule.

    Args:
        program: its Program, with names of its own.
        twins: which inputs were the same tensor in all calls, see `fxprune.recording.twins`; empty
            where that differs among them, and the graph does not rely on it.
    """

    program: Program
    twins: tuple[int, ...]


@dataclass
class Finder:
    """Walks a model from the top and captures what can be captured.

    Args:
        source: a private copy of the model; not changed.
        calls: the recorded calls by submodule, see `recorded_calls`.

    Attributes:
        found: the captured submodules, by name.
        kept: the modules that stay Python code, by name, and the line that is in the way; None
            where the example did not call the module.
    """

    source: nn.Module
    calls: dict[str, list[Call]]
    found: dict[str, Found] = field(default_factory=dict[str, Found])
    kept: dict[str, Obstacle | None] = field(default_factory=dict[str, Obstacle | None])

    def __post_init__(self) -> None:
        self._paths = {id(module): path for path, module in self.source.named_modules()}
        self._seen: set[int] = set()

    def descend(self, path: str, module: nn.Module, obstacle: Obstacle | None) -> None:
        """Capture the children of a module that is not captured itself, or descend further.

        Args:
            path: its name.
            module: the module, in `source`.
            obstacle: why it is not captured.
        """
        self.kept[path] = obstacle
        for name, child in module.named_children():
            if id(child) in self._seen or next(child.parameters(), None) is None:
                continue
            self._seen.add(id(child))
            inner = f"{path}.{name}" if path else name
            result = self._capture(child)
            if isinstance(result, Found):
                self.found[inner] = result
            else:
                self.descend(inner, child, result)

    def _capture(self, module: nn.Module) -> Found | Obstacle | None:
        calls = self.calls.get(self._paths[id(module)])
        if not calls:
            return None
        if not can_be_part(module):
            return Obstacle("its code is compiled or traced", *forward_of(module))
        private = copy_model(module)
        try:
            check_names(module, type(module).__name__)
            example = _example(private, calls)
            program = capture_source(private, [example])
        except CaptureError as error:
            return obstacle_in(module, error)
        wrong = first_difference(module, program, calls)
        if wrong is not None:
            return Obstacle(wrong, *forward_of(module))
        return Found(program, twins(calls[0].leaves) if _are_alike(calls) else ())


def _example(module: nn.Module, calls: list[Call]) -> Batched:
    """Return the recorded call to capture with; sizes that differ among the calls are dynamic."""
    first = calls[0]
    alike = [call for call in calls if call.tree == first.tree and _ranks(call) == _ranks(first)]
    dims = [_varying([call.leaves[i] for call in alike]) for i in range(len(first.leaves))]
    best = max(alike, key=lambda call: _smallest(call, dims))
    args, kwargs = copied((best.args, best.kwargs))
    if not _are_alike(calls):
        args, kwargs = pytree.tree_map(copied, (args, kwargs))
    # torch.export takes a size of 0 or 1 for a constant.
    sizes = zip(pytree.tree_leaves((args, kwargs)), dims, strict=True)
    return exact(module, args, kwargs, [[d for d in at if x.shape[d] > 1] for x, at in sizes])


def _are_alike(calls: list[Call]) -> bool:
    """Tell whether the same inputs are one tensor in all calls; a graph may rely on that."""
    return len({twins(call.leaves) for call in calls}) == 1


def _ranks(call: Call) -> list[int | None]:
    return [x.dim() if isinstance(x, torch.Tensor) else None for x in call.leaves]


def _varying(leaves: list[Any]) -> list[int]:
    if not isinstance(leaves[0], torch.Tensor):
        return []
    return [d for d in range(leaves[0].dim()) if len({leaf.shape[d] for leaf in leaves}) > 1]


def _smallest(call: Call, dims: list[list[int]]) -> int:
    sizes = [leaf.shape[d] for leaf, at in zip(call.leaves, dims, strict=True) for d in at]
    # More than 2 says no more, and an earlier call is the better known one.
    return min(2, *sizes) if sizes else 2


def first_difference(module: nn.Module, program: Program, calls: list[Call]) -> str | None:
    """Say where a Program is not right for calls of what it was captured from; None where it is.

    Args:
        module: the source; not changed.
        program: as captured; not changed.
        calls: run in order in each mode; one that the source does not take is passed over.
    """
    # A module without parts runs its own code for calls that its graph does not take.
    is_leaf = all(next(child.parameters(), None) is None for child in module.children())
    for training in (True, False):
        ours, theirs = copy_model(program), copy_model(module)
        again = copy_model(module)
        for call in calls:
            arguments = (call.args, call.kwargs)
            found = _outcome(ours, arguments, training)
            if is_leaf and isinstance(found, InputError):
                continue
            wanted = _outcome(theirs, arguments, training)
            if isinstance(wanted, Exception):
                continue
            if _difference(_outcome(again, arguments, training), wanted) is not None:
                return "it does not compute the same twice from one seed"
            if isinstance(found, Exception):
                return f"its graph does not take each call that the example makes: {found}"
            text = _difference(found, wanted)
            if text is not None:
                return f"its graph differs from its code: {text}"
        buffers = dict(ours.named_buffers())
        for name, value in theirs.named_buffers():
            if _difference(buffers[name], value) is not None:
                return f"its graph writes other values into the buffer {name!r}"
    return None


def _outcome(module: nn.Module, arguments: Any, training: bool) -> Any:
    args, kwargs = copied(arguments)
    try:
        with with_flags(module, training), reproducible(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _detached(module(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - what the module raises for a call is a result
        return error


def _detached(values: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, values)


def _difference(after: Any, before: Any) -> str | None:
    """Return how two outputs differ, bit for bit; None where they do not."""
    found = Holder(None).nests("output", after, before)
    return next((f"{d.where} {d.text}" for d in found if d.text), None)
