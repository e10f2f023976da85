"""Which calls of modules read which training flags while a model runs, and which code does."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules import batchnorm, instancenorm

__all__ = ["Call", "Readers", "flag_reads", "is_plain_layer", "layers_with_live_flags", "readers"]


@dataclass(eq=False)
class Call:
    """One call of a module.

    Args:
        module: what was called.
        args: its positional inputs.
        kwargs: its keyword inputs.
        read: names of the modules whose flags its own code read, in that order.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    read: dict[str, None] = field(default_factory=dict[str, None])


@contextmanager
def flag_reads(names: Mapping[nn.Module, str]) -> Generator[list[Call]]:
    """Note the calls whose own code reads a training flag.

    Args:
        names: the modules to watch, by full name; of a private copy, since their classes are
            other ones meanwhile. A read counts for the innermost of them that runs.

    Yields:
        The calls, each from its first read on.
    """
    calls: list[Call] = []
    running: list[Call] = []
    classes = {module: type(module) for module in names}
    try:
        for module, name in names.items():
            module.__class__ = _watched(classes[module], name, running, calls)
        yield calls
    finally:
        for module, cls in classes.items():
            module.__class__ = cls


class _Unannounced:
    """Keeps a class's own `__init_subclass__`, which may keep a register, from running."""

    def __init_subclass__(cls) -> None:
        pass


def _watched(cls: type, name: str, running: list[Call], calls: list[Call]) -> Any:
    def read(self: nn.Module) -> bool:
        if running:
            if not running[-1].read:
                calls.append(running[-1])
            running[-1].read[name] = None
        return vars(self)["training"]

    def write(self: nn.Module, value: bool) -> None:
        vars(self)["training"] = value

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        running.append(Call(self, args, kwargs))
        try:
            return cls.__call__(self, *args, **kwargs)
        finally:
            running.pop()

    members = {"training": property(read, write), "__call__": call, "__module__": cls.__module__}
    return type(cls.__name__, (_Unannounced, cls), members)


@dataclass(eq=False)
class Readers:
    """Who read a training flag.

    Args:
        others: whether any other code did, or wrote one, than that of torch's layers.
    """

    others: bool = False


@contextmanager
def readers(source: nn.Module) -> Generator[Readers]:
    """Note who reads the training flags of modules; of a module's `__dict__` reads are not seen.

    Args:
        source: a private copy of the model that runs meanwhile, in this thread.

    Yields:
        What is known so far.
    """
    noted, thread = Readers(), threading.get_ident()

    def read(self: nn.Module) -> bool:
        state = vars(self)
        if threading.get_ident() == thread and not _is_known(self, sys._getframe(1).f_code):
            noted.others = True
        found: Any = state["training"] if "training" in state else self.__getattr__("training")
        return found

    def write(self: nn.Module, value: bool) -> None:
        # A module that is being made has no flag yet. Above is torch's own __setattr__.
        written = "training" in vars(self) and sys._getframe(2).f_code not in _COPIES
        noted.others |= threading.get_ident() == thread and written
        vars(self)["training"] = value

    flag = property(read, write)
    # All modules have the flag among their own attributes, before which a property goes.
    nn.Module.training = flag  # pyright: ignore
    try:
        kinds = {type(module) for module in source.modules()}
        noted.others = any(inspect.getattr_static(kind, "training") is not flag for kind in kinds)
        yield noted
    finally:
        del nn.Module.training


def is_plain_layer(module: nn.Module) -> bool:
    """Tell whether a module is a layer of torch, whose flag is live, without code of others."""
    hooked = module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module)
    return type(module).__module__.startswith("torch.nn.modules.") and not hooked


def layers_with_live_flags(source: nn.Module) -> set[str]:
    """Return the paths of torch's layers that hand their flag to an operator."""
    named = source.named_modules(remove_duplicate=False)
    return {name for name, m in named if isinstance(m, _LAYERS) and is_plain_layer(m)}


def _is_known(module: nn.Module, code: CodeType) -> bool:
    if code in _COPIES:
        return True
    return code in _READS and is_plain_layer(module) and _READS[code](module)


def _has_gradients(module: nn.Module) -> bool:
    """Tell whether a layer of a transformer never takes its fast path of eval mode."""
    return torch.is_grad_enabled() and all(p.requires_grad for p in module.parameters())


def _always(module: nn.Module) -> bool:
    return True


def _has_steady_statistics(norm: Any) -> bool:
    """Tell whether a norm hands the same statistics on in both modes: its own, or none."""
    held = {norm.running_mean is not None, norm.running_var is not None}
    return held == {norm.track_running_stats}


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_ALWAYS = (*_DROPOUTS, nn.FeatureAlphaDropout, nn.RReLU, nn.RNN, nn.GRU, nn.LSTM)
_LAYERS = (*_ALWAYS, batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.MultiheadAttention)
# Code of torch that does nothing with its module's flag but hand it to an operator, count batch
# norm's batches, leave out the dropout of attention's weights and choose a way without gradients
# in eval mode; and when that is so.
_READS: dict[CodeType, Callable[[Any], bool]] = {
    **{kind.forward.__code__: _always for kind in _ALWAYS},
    batchnorm._BatchNorm.forward.__code__: _has_steady_statistics,
    instancenorm._InstanceNorm._apply_instance_norm.__code__: _has_steady_statistics,
    nn.MultiheadAttention.forward.__code__: _has_gradients,
    nn.TransformerEncoder.forward.__code__: _has_gradients,
    nn.TransformerEncoderLayer.forward.__code__: _has_gradients,
}
# Code that copies a flag, as torch.export does with that of the root.
_COPIES = frozenset([fx.GraphModule.__init__.__code__])
