"""Which submodules' training flags choose between the train and the eval graph."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.source import with_flags

__all__ = ["find_deciders"]


class _Calls(TorchFunctionMode):
    """Records the torch functions that run, with their constants but for flags."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A flag among the arguments, as dropout's, is live in the graph and chooses none.
        leaves = pytree.tree_leaves((args, kwargs))
        constants = [x for x in leaves if isinstance(x, (int, float)) and not isinstance(x, bool)]
        self.made.append(f"{resolve_name(func) or func!r} {constants}")
        return func(*args, **(kwargs or {}))


def find_deciders(
    source: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, ...]:
    """Flip each training flag alone and return the submodules that change what runs.

    Args:
        source: a private copy of the model, on which the two captured graphs differ; runs, so its
            batch statistics change.
        args: example positional inputs.
        kwargs: example keyword inputs.

    Raises:
        CaptureError: no single flag changes anything, so no flag can choose the graph.
    """
    source, args, kwargs = _on_meta(source, args, kwargs)
    buffers = {name: value.clone() for name, value in source.named_buffers()}
    found: list[str] = []
    with torch.random.fork_rng(devices=[]):
        for mode in (True, False):
            base = _calls(source, args, kwargs, mode, None)
            for name, module in source.named_modules():
                if name in found or _is_plain_layer(module):
                    continue
                if _calls(source, args, kwargs, mode, name) != base:
                    found.append(name)
    for name, value in source.named_buffers():
        value.data.copy_(buffers[name])
    if not found:
        raise CaptureError(
            "the graph differs between train and eval mode, but no submodule's training flag alone "
            "changes it; let forward decide on self.training of one module"
        )
    return tuple(sorted(found))


def _is_plain_layer(module: nn.Module) -> bool:
    """Tell whether a module is a layer of torch, whose flag is live, without code of others."""
    hooked = module._forward_pre_hooks or module._forward_hooks
    return type(module).__module__.startswith("torch.nn.modules.") and not hooked


def _on_meta(
    source: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Move model and inputs to the meta device, where nothing is computed, if it runs there."""
    moved = copy.deepcopy(source).to("meta")
    there = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
    try:
        for mode in (True, False):
            _calls(moved, there[0], there[1], mode, None)
    except Exception:  # noqa: BLE001 - forward needs values, or reads a tensor that does not move
        return source, args, kwargs
    return moved, there[0], there[1]


def _calls(
    source: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mode: bool, but: str | None
) -> list[str]:
    with with_flags(source, mode, but), torch.no_grad(), _Calls() as calls:
        found = source(*args, **kwargs)
    return [*calls.made, str(pytree.tree_structure(found))]
