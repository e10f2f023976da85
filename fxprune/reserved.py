"""Names that a source may not have: a Program needs them itself, or they are Python's own."""

from __future__ import annotations

import keyword

import torch
from torch import fx, nn

from fxprune.errors import CaptureError

__all__ = ["RESERVED", "check_names"]

_OWN = {"graphs", "captured", "device", "_run", "_forward_both", "_forward_train", "_forward_eval"}
RESERVED = frozenset(
    _OWN | (set(dir(fx.GraphModule)) - set(dir(nn.Module))) | {"_graph", "_code", "meta"}
)


def check_names(root: nn.Module, kind: str) -> None:
    """Check the names of a source's parameters, buffers and submodules.

    Args:
        root: the source, or the tree of a Program.
        kind: the class name of the source.

    Raises:
        CaptureError: names the attribute.
    """
    plain = [name for name, value in vars(root).items() if isinstance(value, torch.Tensor)]
    for name in (*root._parameters, *root._buffers, *root._modules, *plain):
        if name in RESERVED:
            raise CaptureError(
                f"{kind}.{name}: {name!r} is a name that torch.fx.GraphModule or Program needs "
                "itself; rename that attribute"
            )
    named = (*root.named_modules(), *root.named_parameters(), *root.named_buffers())
    for name in (name for name, _ in named):
        word = next((part for part in name.split(".") if keyword.iskeyword(part)), None)
        if word is not None:
            raise CaptureError(
                f"{kind}.{name}: {word!r} is a word of Python's own, which generated code cannot "
                "read as an attribute; rename it"
            )
