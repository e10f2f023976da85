"""Values and calls as Python source: constants, variables, operators, functions, methods."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.fx.graph import magic_methods
from torch.fx.node import Node
from torch.nn import functional

from fxprune.codegen import FAST
from fxprune.errors import FormatError

__all__ = ["Write", "call_text", "is_list", "is_plain", "quoted", "read_text", "value_text"]

Write = Callable[[Any], str]

_nn: Any = getattr(torch._C, "_nn")  # noqa: B009 - torch's stubs leave it out
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)
_MAGIC: Mapping[str, str] = magic_methods | {"not_": "not {}", "is_": "{} is {}"}


def value_text(value: Any, name: Write) -> str:
    """Return a value as source.

    Args:
        value: a node, a constant of torch or Python, or nested ones.
        name: returns what stands for a node.

    Raises:
        FormatError: it is none of these.

    Example:
        >>> value_text((1, [float("-inf"), None], torch.float16), str)
        '(1, [float("-inf"), None], torch.float16)'
    """

    def write(part: Any) -> str:
        return value_text(part, name)

    if isinstance(value, Node):
        return name(value)
    if type(value) is str:
        return quoted(value)
    if value is None or value is ... or type(value) in (bool, int):
        return "..." if value is ... else repr(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if type(value) is complex:
        return f"complex({write(value.real)}, {write(value.imag)})"
    if isinstance(value, _CONSTANTS):
        return str(value)
    if isinstance(value, torch.device):
        return f"torch.device({quoted(str(value))})"
    if isinstance(value, slice):
        return f"slice({write(value.start)}, {write(value.stop)}, {write(value.step)})"
    if isinstance(value, dict):
        pairs: Any = value.items()  # pyright: ignore[reportUnknownMemberType]
        return "{" + ", ".join(f"{write(key)}: {write(part)}" for key, part in pairs) + "}"
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        inside = ", ".join(map(write, value))  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"  # pyright: ignore
    raise FormatError(f"a {type(value).__name__} has no source that needs torch alone")


def call_text(node: Node, write: Write) -> str:
    """Return a call as an expression.

    Args:
        node: a call of a function or a method.
        write: returns what stands for a value.

    Raises:
        FormatError: it calls what torch alone does not have.
    """
    args = list(map(write, node.args))
    keyed = [f"{key}={write(value)}" for key, value in node.kwargs.items()]
    if node.op == "call_method":
        return f"{args[0]}.{node.target}({', '.join([*args[1:], *keyed])})"
    target: Any = FAST.get(node.target, node.target)
    if target is getattr:
        return f"{args[0]}.{node.args[1]}"
    if getattr(target, "__module__", "") == "_operator" and target.__name__ in _MAGIC:
        return _MAGIC[target.__name__].format(*args)
    name = _function(target)
    if name.startswith("."):
        return f"{args[0]}{name}({', '.join([*args[1:], *keyed])})"
    return f"{name}({', '.join([*args, *keyed])})"


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


def _function(target: Any) -> str:
    """Return how a function is written: as a method with a dot before it, or by its full name."""
    if isinstance(target, OpOverload):
        if target.namespace != "aten":
            raise FormatError(f"{target} is no operator of torch itself")
        name = target._schema.name.rpartition("::")[2]
        return f"torch.ops.aten.{name}.{target._overloadname}"
    name = str(getattr(target, "__name__", ""))
    for owner, text in ((torch, f"torch.{name}"), (functional, f"F.{name}")):
        if getattr(owner, name, None) is target:
            return text
    if hasattr(functional, name) and getattr(_nn, name, None) is target:
        return f"F.{name}"
    if getattr(torch.Tensor, name, None) is target:
        return f".{name}"
    if getattr(math, name, None) is target:
        return f"math.{name}"
    raise FormatError(f"{target} is no function of torch itself")
