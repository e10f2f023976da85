"""The module tree of a Program: the source's names, parameters and buffers, without its code."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.shards import like

__all__ = ["MaskedReads", "Shell", "kind_of", "mask_of", "raw_parameter", "shell_of"]


class MaskedReads(nn.Module):
    """A module whose masked parameters read as their current product with the mask.

    A masked parameter `P` is stored as Parameter `P_orig` and buffer `P_mask`, the names that
    torch.nn.utils.prune gives. Nothing is cached, so a read is never stale.
    """

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__
        # A graph reads each tensor by its path: the common cases first.
        for kind in ("_modules", "_parameters", "_buffers"):
            if kind in state and name in state[kind]:
                return state[kind][name]
        orig = state.get("_parameters", {}).get(f"{name}_orig")
        mask = state.get("_buffers", {}).get(f"{name}_mask")
        if orig is not None and mask is not None:
            return orig * like(mask, orig)
        return super().__getattr__(name)


class Shell(MaskedReads):
    """A place in the module tree: holds what the source's module held, and its class name.

    Args:
        kind: the class name of the source's module.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._fxprune_kind = kind

    def _get_name(self) -> str:
        return self._fxprune_kind


def kind_of(module: nn.Module) -> str:
    """Return the class name of the source's module that a part of a Program stands for."""
    return module._fxprune_kind if isinstance(module, Shell) else type(module).__name__


def shell_of(module: nn.Module) -> Shell:
    """Build the tree of shells that hold a module's tensors under the same names and order.

    Args:
        module: the source; its Parameter and buffer objects are shared, not copied.
    """
    return _shell_of(module, {})


def _shell_of(module: nn.Module, made: dict[int, Shell]) -> Shell:
    if id(module) in made:
        return made[id(module)]
    shell = made[id(module)] = Shell(type(module).__name__)
    shell._parameters = dict(module._parameters)
    shell._buffers = dict(module._buffers)
    shell._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    shell.training = module.training
    for name, child in module._modules.items():
        shell._modules[name] = None if child is None else _shell_of(child, made)
    return shell


def raw_parameter(owner: nn.Module, attribute: str) -> nn.Parameter | None:
    """Return the Parameter object behind a name, masked or not; None where there is none."""
    found = owner._parameters.get(attribute)
    return owner._parameters.get(f"{attribute}_orig") if found is None else found


def mask_of(owner: nn.Module, attribute: str) -> torch.Tensor | None:
    """Return the mask of a parameter; None where it is not masked."""
    # A source may itself have P, P_orig and P_mask: then P is a plain parameter.
    if owner._parameters.get(attribute) is not None:
        return None
    if owner._parameters.get(f"{attribute}_orig") is None:
        return None
    return owner._buffers.get(f"{attribute}_mask")
