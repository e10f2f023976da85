"""Parameters that are spread over processes (DTensor), for code that knows no processes.

torch.distributed.tensor takes longer to import than all of fxprune: where nobody has imported it,
no tensor is spread, and it stays out.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import nn

from fxprune.errors import CaptureError, PassError
from fxprune.wrapping import is_wrapped, reshard

__all__ = [
    "count_of",
    "is_sharded",
    "is_spread",
    "like",
    "part",
    "part_like",
    "placing",
    "refuse_sharded",
    "refuse_spread_source",
]


def is_sharded(tensor: object) -> bool:
    """Tell whether a tensor is a DTensor, of which this process holds a part."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_spread(module: nn.Module) -> bool:
    """Tell whether any parameter of a module is a DTensor, or is one between its forwards."""
    return is_wrapped(module) or any(is_sharded(tensor) for tensor in module.parameters())


def placing() -> Any:
    """Return the module `fxprune.placing`, which imports torch.distributed.tensor."""
    return importlib.import_module("fxprune.placing")


def like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return a tensor spread over processes as another one of its shape is.

    Args:
        tensor: a DTensor, or a whole tensor that every process holds.
        other: of its shape; where it is no DTensor, `tensor` is returned as it is.
    """
    if not is_sharded(other):
        return tensor
    return placing().spread(tensor, other)


def count_of(tensor: torch.Tensor) -> int:
    """Return how many entries of a bool tensor are true; all that hold parts of it must ask."""
    found: Any = tensor.sum()
    return int(found.full_tensor() if is_sharded(found) else found)


def part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor, without gradient."""
    found: Any = tensor.detach()
    return found.to_local() if is_sharded(found) else found


def part_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return of a tensor what this process holds of another one of its shape."""
    return part(like(tensor.detach(), other))


def refuse_sharded(module: nn.Module) -> None:
    """Check that no parameter of a module is spread over processes.

    Raises:
        PassError: names the first that is.
    """
    reshard(module)
    for name, tensor in module.named_parameters():
        if is_sharded(tensor):
            raise PassError(
                f"{name!r} is spread over processes (DTensor); call fxprune.prune on each of them "
                "with process_group=, as torch.distributed.group.WORLD"
            )


def refuse_spread_source(model: nn.Module) -> None:
    """Check that a model to be captured is whole.

    Raises:
        CaptureError: its parameters are spread over processes.
    """
    if is_spread(model):
        raise CaptureError(
            f"{type(model).__name__} holds parameters that are spread over processes (DTensor, "
            "FSDP2), which torch.export cannot take; capture it first, then spread the Program"
        )
