"""Trials: inputs to compare two models on, and runs that leave the models as they are."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from fxprune.program import (
    BOTH,
    EVAL,
    TRAIN,
    VALUE,
    Program,
    copy_model,
    enter_autocast,
    example_of,
    masks,
)
from fxprune.support import exclusive

Given = tuple[tuple[Any, ...], dict[str, Any]] | None


@dataclass(frozen=True)
class Trial:
    """One input in one mode, drawn or given."""

    mode: str
    label: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    drawn: bool


@dataclass(frozen=True)
class TrialRun:
    """What one model gave in a trial, on the CPU; or what it raised, in a line."""

    output: Any = None
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    inputs: tuple[Any, ...] = ()
    error: str | None = None


def trials_of(
    mode: str, given: Given, spec: Program | None, count: int, seed: int
) -> Iterator[Trial]:
    """Yield the given input, then `count` drawn from a Program's spec, in several batch sizes."""
    if given is not None:
        args, kwargs = given
        yield Trial(mode, "the given input", args, kwargs, drawn=False)
    if spec is None:
        return
    for i in range(count):
        # Batch norm refuses to train on a single row.
        batch = 2 * i + (2 if mode == TRAIN else 1)
        label = f"drawn with batch {batch} and seed {seed + i}"
        args, kwargs = example_of(spec, batch=batch, seed=seed + i)
        yield Trial(mode, label, args, kwargs, drawn=True)


class Side:
    """A model that runs again and again as if for the first time, in float64 where `wide`.

    A Program of operators alone is copied once: its graphs can change nothing but tensors, and
    these are put back where torch counted a write. Of what Python code of a module may change
    nothing is known: it is copied for each run.
    """

    def __init__(self, model: nn.Module, *, wide: bool) -> None:
        self._model, self._wide = model, wide
        self._copy: nn.Module | None = None
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._versions: list[tuple[torch.Tensor, int]] = []

    def prepare(self, trial: Trial) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Return a private copy in the trial's mode, and private inputs."""
        module = self._reused() if _is_of_operators(self._model) else self._fresh()
        inputs: Any = (trial.args, trial.kwargs)
        args, kwargs = pytree.tree_map_only(torch.Tensor, _copy_tensor, inputs)
        if self._wide:
            args, kwargs = pytree.tree_map_only(torch.Tensor, wide_tensor, (args, kwargs))
        return module.train(trial.mode == TRAIN), args, kwargs

    def _fresh(self) -> nn.Module:
        copied = copy_model(self._model)
        if self._wide:
            widen(copied)
        return copied

    def _reused(self) -> nn.Module:
        """Return the one copy, with what an earlier run wrote to put back."""
        if self._copy is None or any(x._version != version for x, version in self._versions):
            self._copy = copied = self._fresh()
            # Batch norm writes to its buffers past torch's count of writes.
            own = masks(copied).values() if isinstance(copied, Program) else ()
            read = {id(mask) for mask in own}
            held = [*copied.parameters(), *(x for x in copied.buffers() if id(x) in read)]
            kept = [x for x in held if x.numel() < _SMALL]
            kept += (x for x in copied.buffers() if id(x) not in read)
            self._kept = [(tensor, tensor.detach().clone()) for tensor in kept]
            self._versions = [(x, x._version) for x in held if x.numel() >= _SMALL]
        with torch.no_grad():
            for tensor, before in self._kept:
                tensor.copy_(before)
        for part, own_part in zip(self._copy.modules(), self._model.modules(), strict=True):
            part.training = own_part.training
        return self._copy


_SMALL = 65_536  # entries of a tensor of which a second copy costs nothing


def _is_of_operators(model: nn.Module) -> bool:
    """Tell whether a model is a Program that runs no Python code but its graphs'."""
    return (
        isinstance(model, Program)
        and set(model.graphs) <= {BOTH, TRAIN, EVAL}
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        and not any(graph.find_nodes(op="call_module") for graph in model.graphs.values())
    )


def run(side: Side, trial: Trial, *, seed: int) -> TrialRun:
    """Run a model from a seed on a trial's private inputs; what it raises is a result."""
    try:
        module, args, kwargs = side.prepare(trial)
        with reproducible(seed):
            output = module(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - a model may raise anything, and it is a finding
        lines = [*str(error).strip().splitlines(), ""]
        return TrialRun(error=f"{type(error).__name__}: {lines[0]}")
    ends: Any = (output, pytree.tree_leaves((args, kwargs)))
    output, inputs = pytree.tree_map_only(torch.Tensor, lambda x: x.detach().cpu(), ends)
    return TrialRun(output, _buffers(module), tuple(inputs))


@contextmanager
def reproducible(seed: int) -> Generator[None]:
    """Run from a seed, with gradients on; the caller's generators stay as they are.

    Without gradients torch takes other kernels for weights that are Parameters than for products.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with exclusive(), torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        torch.manual_seed(seed)
        yield


def _buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    kept = set(module.state_dict())
    if isinstance(module, Program):
        kept -= {f"{alias}_mask" for alias in module.captured.first if alias in masks(module)}
    # Copies: the next run starts from the buffers as they were.
    return {name: _copy_tensor(x).cpu() for name, x in module.named_buffers() if name in kept}


def _copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


_NARROW = frozenset({torch.float16, torch.bfloat16, torch.float32})


def widen(module: nn.Module) -> None:
    """Take a private copy to float64 in place; casts and autocast in a Program's graphs, too."""
    module._apply(wide_tensor)
    if not isinstance(module, Program):
        return
    for graph in module.graphs.values():
        for node in graph.nodes:
            node.args = map_aggregate(node.args, _wide_dtype)
            node.kwargs = map_aggregate(node.kwargs, _wide_dtype)
            if VALUE in node.meta:  # constants that are made of a value have its dtype
                shape, dtype = node.meta[VALUE]
                node.meta[VALUE] = shape, _wide_dtype(dtype)
            if node.target is enter_autocast:
                node.args = (*node.args[:2], False, *node.args[3:])
    module.recompile()


def wide_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64 or complex128; of integers, as it is."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _wide_dtype(part: Any) -> Any:
    return torch.float64 if isinstance(part, torch.dtype) and part in _NARROW else part
