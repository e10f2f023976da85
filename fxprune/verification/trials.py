"""Trials: inputs to compare two models on, and runs that leave the models as they are.

A model in float64, casts in its graphs included: what is left of a difference is no rounding.
"""

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
    """One input in one mode.

    Args:
        mode: "train" or "eval".
        label: what the input is called.
        args: positional inputs.
        kwargs: keyword inputs.
        drawn: whether it was drawn, and not given.
    """

    mode: str
    label: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    drawn: bool


@dataclass(frozen=True)
class Run:
    """What one model gave in a trial.

    Args:
        output: its output, on the CPU.
        buffers: its persistent buffers after the run, but for masks.
        inputs: the leaves of its inputs after the run, which it may have written to.
        error: what it raised, in a line; None where it ran.
    """

    output: Any = None
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    inputs: tuple[Any, ...] = ()
    error: str | None = None


def trials_of(
    mode: str, given: Given, spec: Program | None, count: int, seed: int
) -> Iterator[Trial]:
    """Yield the given input, then drawn ones of several batch sizes.

    Args:
        mode: "train" or "eval".
        given: `(args, kwargs)`, or None.
        spec: whose input spec to draw from; None to draw nothing.
        count: how many to draw.
        seed: of the first; each next one has the next.
    """
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
    """A model that runs again and again as if for the first time.

    A Program of operators alone is copied once: its graphs can change nothing but tensors, and
    these are put back where torch counted a write. Of what Python code of a module may change
    nothing is known: it is copied for each run.

    Args:
        model: not changed.
        wide: whether to run in float64.
    """

    def __init__(self, model: nn.Module, *, wide: bool) -> None:
        self._model, self._wide = model, wide
        self._copy: nn.Module | None = None
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._versions: list[tuple[torch.Tensor, int]] = []

    def prepared(self, trial: Trial) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Return a private copy in the trial's mode, and private inputs; see `prepared`."""
        if not _is_of_operators(self._model):
            return prepared(self._model, trial, wide=self._wide)
        if self._copy is None:
            self._copy = self._made()
        else:
            self._put_back()
        module = self._copy
        for part, own in zip(module.modules(), self._model.modules(), strict=True):
            part.training = own.training
        return module.train(trial.mode == TRAIN), *_inputs(trial, wide=self._wide)

    def _made(self) -> nn.Module:
        copied = copy_model(self._model)
        if self._wide:
            widen(copied)
        # Batch norm writes to its buffers past torch's count of writes.
        read = (
            {id(mask) for mask in masks(copied).values()} if isinstance(copied, Program) else set()
        )
        held = [*copied.parameters(), *(x for x in copied.buffers() if id(x) in read)]
        kept = [x for x in held if x.numel() < _SMALL]
        kept += (x for x in copied.buffers() if id(x) not in read)
        self._kept = [(tensor, tensor.detach().clone()) for tensor in kept]
        self._versions = [(x, x._version) for x in held if x.numel() >= _SMALL]
        return copied

    def _put_back(self) -> None:
        if any(tensor._version != version for tensor, version in self._versions):
            self._copy = self._made()
            return
        with torch.no_grad():
            for tensor, before in self._kept:
                tensor.copy_(before)


_SMALL = 65_536  # entries of a tensor of which a second copy costs nothing


def _is_of_operators(model: nn.Module) -> bool:
    """Tell whether a model is a Program that runs no Python code but its graphs'."""
    return (
        isinstance(model, Program)
        and set(model.graphs) <= {BOTH, TRAIN, EVAL}
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        and not any(graph.find_nodes(op="call_module") for graph in model.graphs.values())
    )


def run(side: Side, trial: Trial, *, seed: int) -> Run:
    """Run a model; what it raises is a result.

    Args:
        side: the model.
        trial: mode and inputs; the inputs are not changed.
        seed: of what the model draws.
    """
    try:
        module, args, kwargs = side.prepared(trial)
        with reproducible(seed):
            output = module(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - a model may raise anything, and it is a finding
        lines = [*str(error).strip().splitlines(), ""]
        return Run(error=f"{type(error).__name__}: {lines[0]}")
    output, inputs = pytree.tree_map_only(torch.Tensor, _at_rest, (output, (args, kwargs)))
    return Run(output, _buffers(module), tuple(pytree.tree_leaves(inputs)))


def prepared(
    model: nn.Module, trial: Trial, *, wide: bool
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return private copies of a model, in the trial's mode, and of the inputs.

    Args:
        model: not changed.
        trial: mode and inputs.
        wide: whether to take model and inputs to float64.
    """
    module = copy_model(model)
    if wide:
        widen(module)
    return module.train(trial.mode == TRAIN), *_inputs(trial, wide=wide)


def _inputs(trial: Trial, *, wide: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = pytree.tree_map_only(torch.Tensor, _copied, (trial.args, trial.kwargs))
    if wide:
        args, kwargs = pytree.tree_map_only(torch.Tensor, wide_tensor, (args, kwargs))
    return args, kwargs


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
    return {name: _copied(x).cpu() for name, x in module.named_buffers() if name in kept}


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _at_rest(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu()


_NARROW = frozenset({torch.float16, torch.bfloat16, torch.float32})


def widen(module: nn.Module) -> None:
    """Take a model to float64 in place; in the graphs of a Program, casts and autocast, too.

    Args:
        module: a private copy.
    """
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
