"""The private copy of a model that capture works on; the caller's model is never changed."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.prune import BasePruningMethod

from fxprune.errors import CaptureError

# The parts of a module that hold its tensors and children.
STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
_FX_COPY = fx.GraphModule.__deepcopy__


@dataclass(frozen=True)
class HookedMask:
    """A parameter, by its full name, that torch.nn.utils.prune had masked with a hook."""

    name: str
    mask: torch.Tensor


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model, or raise a CaptureError; results of autograd are copied without their history.

    A model that torch.nn.utils.prune has just masked holds one for each parameter, and plain
    `copy.deepcopy` raises on it (pytorch/pytorch#37322).
    """
    memo: dict[int, Any] = own_results(model)
    try:
        copied = copy.deepcopy(model, memo)
        _copy_graph_modules(model, copied, memo)
        return copied
    except Exception as error:  # whatever an attribute's own copying raises
        raise CaptureError(
            f"{type(model).__name__} cannot be copied: {error}; take what cannot be copied (files, "
            "locks, results of autograd) out of its attributes"
        ) from error


def _copy_graph_modules(model: nn.Module, copied: nn.Module, memo: dict[int, Any]) -> None:
    """Give copies of torch.fx's GraphModules what their own copying leaves out.

    It keeps what the graph reads alone, in the order in which it does, and saves every buffer
    (pytorch/pytorch#191708).
    """
    for part in list(model.modules()):
        if isinstance(part, fx.GraphModule) and type(part).__deepcopy__ is _FX_COPY:
            twin = memo.get(id(part), copied if part is model else None)
            for key in STATE if twin is not None else ():
                twin.__dict__[key] = copy.deepcopy(part.__dict__[key], memo)


def own_results(model: nn.Module) -> dict[int, Any]:
    """Return a memo for `copy.deepcopy` with copies of the attributes that autograd computed."""
    return {
        id(tensor): tensor.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        for tensor in _tensors(value)
        if not tensor.is_leaf
    }


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (part for part in value if isinstance(part, torch.Tensor))  # pyright: ignore


def unhook(model: nn.Module) -> tuple[HookedMask, ...]:
    """Take torch.nn.utils.prune's hooks off a private copy, whose parameters become plain again.

    Returns the masks that were taken off.
    """
    found: list[HookedMask] = []
    for path, module in model.named_modules():
        hooks: dict[int, Any] = module._forward_pre_hooks
        keys = [key for key, hook in hooks.items() if isinstance(hook, BasePruningMethod)]
        pruned = {hooks.pop(key)._tensor_name for key in keys}
        stored = {f"{name}_orig": name for name in pruned}
        order = [stored.get(key, key) for key in module._parameters]
        prefix = f"{path}." if path else ""
        masks = {name: _unhook_parameter(module, name) for name in order if name in pruned}
        found.extend(HookedMask(f"{prefix}{name}", mask) for name, mask in masks.items())
        module._parameters = {key: module._parameters[key] for key in order}
    return tuple(found)


def _unhook_parameter(module: nn.Module, name: str) -> torch.Tensor:
    """Make a hooked parameter a plain one in its module; return its mask."""
    mask = module._buffers.pop(f"{name}_mask")
    parameter = module._parameters.pop(f"{name}_orig")
    vars(module).pop(name, None)
    # setattr, so that recurrent layers see it in their list of flat weights.
    setattr(module, name, parameter)
    if mask is None:
        raise CaptureError(f"the hook on {name!r} has no mask; remove it and prune again")
    return mask


def training_flags(model: nn.Module, mode: bool) -> dict[str, bool]:
    """Return the flags that a private copy's own `train(mode)` leaves different from `mode`."""
    model.train(mode)
    return {name: m.training for name, m in model.named_modules() if m.training is not mode}


@contextmanager
def with_flags(model: nn.Module, value: bool, but: str | None = None) -> Generator[None]:
    """Set every training flag for a while without calling `train`; `but` gets the opposite."""
    before = [(module, module.training) for module in model.modules()]
    for name, module in model.named_modules():
        module.training = value != (name == but)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag
