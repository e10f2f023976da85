"""Modules as calls: what builds a module also prints as the code that builds it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["Made"]


class Made:
    """A call of a module's class, its arguments values or modules that are made likewise.

    Args:
        kind: the class.
        args: positional arguments.
        options: keyword arguments.

    Example:
        >>> made = Made(nn.Linear, 2, 3, bias=False)
        >>> made.code(), made.build().weight.shape
        ('nn.Linear(2, 3, bias=False)', torch.Size([3, 2]))
    """

    def __init__(self, kind: type[nn.Module], *args: Any, **options: Any) -> None:
        self.kind, self.args, self.options = kind, args, options

    def build(self) -> nn.Module:
        """Make the module."""
        args = [arg.build() if isinstance(arg, Made) else arg for arg in self.args]
        return self.kind(*args, **self.options)

    def code(self) -> str:
        """Write the call; torch's own classes are under `nn`."""
        args = [arg.code() if isinstance(arg, Made) else repr(arg) for arg in self.args]
        args += [f"{key}={value!r}" for key, value in self.options.items()]
        prefix = "nn." if self._is_torchs else ""
        return f"{prefix}{self.kind.__name__}({', '.join(args)})"

    def sources(self) -> Iterator[str]:
        """Yield the source of each class that is not torch's own."""
        if not self._is_torchs:
            yield inspect.getsource(self.kind)
        for arg in self.args:
            if isinstance(arg, Made):
                yield from arg.sources()

    @property
    def _is_torchs(self) -> bool:
        return getattr(nn, self.kind.__name__, None) is self.kind
