"""Which calls of modules read which training flags while a model runs."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Call", "flag_reads"]


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
