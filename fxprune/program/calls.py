"""What graphs call of fxprune's own: regions of autocast, kept flat, and a count of batches.

torch.export records regions of another grad mode or of autocast where forward makes them; a Program
puts autocast back where an error ends one early.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.utils.checkpoint import CheckpointFunction

PATH = "fxprune.path"  # meta key: the module whose forward made the node
VALUE = "fxprune.value"  # meta key: (shape, dtype) of the node's tensor


def count_batch(batches: torch.Tensor, training: bool) -> None:
    """Count a batch in batch norm's `num_batches_tracked`, in training only."""
    if training:
        batches.add_(1)


_PASSES = "torch._export.passes"
_NESTING = ("replace_set_grad_with_hop_pass", "replace_autocast_with_hop_pass")


def enter_autocast(device: str, dtype: torch.dtype | None, enabled: bool) -> Any:
    """Begin a region of autocast; return what `exit_autocast` takes."""
    # Autocast's cache of casts is not named: export runs without it, and torch's default has it.
    if torch.compiler.is_dynamo_compiling():
        return _enter_autocast(device, dtype, enabled, None)
    mode = torch.autocast(device, dtype=dtype, enabled=enabled)
    mode.__enter__()
    return mode


def exit_autocast(mode: Any) -> None:
    """End a region of autocast."""
    if torch.compiler.is_dynamo_compiling():
        _exit_autocast(mode)
    else:
        mode.__exit__(None, None, None)


@contextmanager
def flat_regions() -> Generator[None]:
    """Let torch.export record regions where forward makes them, with the gradients they have.

    Its own passes (pytorch/pytorch#119810, #132677) cut regions out as graphs of their own, and
    lose a no_grad inside of an autocast. A torch without these passes makes nested graphs as ever,
    which import takes as well.
    """
    with ExitStack() as stack:
        for name in _NESTING:
            try:
                module = importlib.import_module(f"{_PASSES}.{name}")
                stack.enter_context(patch.object(module, name, _keep_regions))
            except (ImportError, AttributeError):
                continue
        # Export would record its forward, which is without gradients (pytorch/pytorch#185140).
        stack.enter_context(patch.object(CheckpointFunction, "apply", _checkpoint))
        # Export does not record inference mode, which has no gradients either.
        stack.enter_context(patch.object(torch.inference_mode, "__enter__", _enter_inference))
        stack.enter_context(patch.object(torch.inference_mode, "__exit__", _exit_inference))
        yield


def _keep_regions(module: Any, signature: Any) -> Any:
    return module, signature


def _checkpoint(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
    """Do what a reentrant checkpoint does, in the graph: no gradients unless an input has them."""
    if any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args):
        return function(*args)
    with torch.no_grad():
        return function(*args)


def _enter_inference(self: Any) -> None:
    self._inference_mode_context = torch.set_grad_enabled(torch.is_grad_enabled() and not self.mode)


def _exit_inference(self: Any, *error: Any) -> None:
    self._inference_mode_context.__exit__(*error)


def guard(graph: fx.Graph, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return `run`, or what puts autocast back where an error ends a region of it early."""
    entered = [node for node in graph.nodes if node.target is enter_autocast]
    devices = sorted({str(node.args[0]) for node in entered})
    if not devices:
        return run

    def guarded_run(*args: Any) -> Any:
        # Compiled code runs elsewhere, and torch's tracers do not know the calls below.
        if torch.compiler.is_compiling():
            return run(*args)
        depth = _depth()
        cached = torch.is_autocast_cache_enabled()
        state = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
        try:
            return run(*args)
        except BaseException:
            _leave(depth)
            for device, enabled, dtype in state:
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
            torch.set_autocast_cache_enabled(cached)
            raise

    return guarded_run


def _depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _leave(depth: int) -> None:
    while _depth() > depth:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
