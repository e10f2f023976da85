"""Constants and reads of a module tree as Python source."""

from __future__ import annotations

import keyword
import math
from typing import Any

import torch
from torch import nn

from fxprune.errors import FormatError

__all__ = ["Source", "as_source", "is_list", "is_plain", "quoted", "read_text"]

_PLAIN = (bool, int, type(None), type(...), torch.dtype, torch.layout, torch.memory_format)


class Source(str):
    """A text that is written as it is where torch.fx, or repr, writes a value."""

    __slots__ = ()
    __repr__ = str.__str__


def as_source(value: Any) -> Any:
    """Return a constant of Python or torch as what prints as its source.

    Raises:
        FormatError: it is neither, or holds parts.

    Example:
        >>> [as_source(value) for value in (1, float("-inf"), "a", torch.device("cpu"))]
        [1, float("-inf"), "a", torch.device("cpu")]
    """
    if isinstance(value, Source) or type(value) in _PLAIN:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else Source(f'float("{value}")')
    if type(value) is complex:
        return Source(f"complex({as_source(value.real)!r}, {as_source(value.imag)!r})")
    if type(value) is str:
        return Source(quoted(value))
    if isinstance(value, torch.device):
        return Source(f"torch.device({quoted(str(value))})")
    raise FormatError(f"a {type(value).__name__} has no source that needs torch alone")


def read_text(path: str, root: nn.Module) -> str:
    """Return the read of an attribute of a module tree.

    Args:
        path: of a module, a tensor or a flag.
        root: the tree, which is `self` in the source.

    Example:
        >>> root = nn.Module()
        >>> root.layers = nn.Sequential(nn.Linear(2, 2))
        >>> read_text("layers.0.weight", root)
        'self.layers[0].weight'
    """
    text, owner = "self", root
    for name in path.split(".") if path else ():
        # The root is a class of its own, which has no places.
        if owner is not root and is_list(owner) and name in owner._modules:
            text = f"{text}[{name}]"
        else:
            text = f"{text}.{name}" if is_plain(name) else f"getattr({text}, {quoted(name)})"
        owner = owner._modules.get(name) or owner
    return text


def is_list(module: nn.Module) -> bool:
    """Tell whether a module's children are numbered from 0 on."""
    names = list(module._modules)
    return bool(names) and names == [str(at) for at in range(len(names))]


def quoted(text: str) -> str:
    """Return a text in double quotes, if it has none."""
    plain = repr(text)
    return plain if '"' in plain else f'"{plain[1:-1]}"'


def is_plain(name: str) -> bool:
    """Tell whether a name can be written as it is."""
    return name.isidentifier() and not keyword.iskeyword(name)
