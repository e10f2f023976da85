"""Names that the root of a source may not have, because a Program needs them itself."""

from __future__ import annotations

import torch
from torch import fx, nn

from fxprune.errors import CaptureError

__all__ = ["RESERVED", "check_names"]

_OWN = {"graphs", "captured", "device", "_run", "_forward_both", "_forward_train", "_forward_eval"}
RESERVED = frozenset(
    _OWN | (set(dir(fx.GraphModule)) - set(dir(nn.Module))) | {"_graph", "_code", "meta"}
)


def check_names(root: nn.Module, kind: str) -> None:
    """Check the names of a root's parameters, buffers and submodules.

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
