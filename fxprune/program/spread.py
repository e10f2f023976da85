"""Parameters that are spread over processes (DTensor, FSDP2), for code that knows no processes.

torch.distributed.tensor takes longer to import than all of fxprune: where nobody has imported it,
no tensor is spread, and it stays out. FSDP2's `fully_shard` keeps names and parts of parameters of
its own, which nothing public tells: all that reads them is here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.errors import CaptureError, PassError


def is_sharded(tensor: object) -> bool:
    """Tell whether a tensor is a DTensor, of which this process holds a part."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_spread(module: nn.Module) -> bool:
    """Tell whether any parameter of a module is a DTensor, or is one between its forwards."""
    return is_wrapped(module) or any(is_sharded(tensor) for tensor in module.parameters())


def distributed() -> Any:
    """Return the module `fxprune.program.placing`, which imports torch.distributed.tensor."""
    return importlib.import_module("fxprune.program.placing")


def like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return a tensor, whole or spread, spread over processes as another one of its shape is."""
    if not is_sharded(other):
        return tensor
    return distributed().spread(tensor, other)


def count_true(tensor: torch.Tensor) -> int:
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
    """Raise a PassError that names the first parameter that is spread over processes."""
    reshard(module)
    for name, tensor in module.named_parameters():
        if is_sharded(tensor):
            raise PassError(
                f"{name!r} is spread over processes (DTensor); call fxprune.prune on each of them "
                "with process_group=, as torch.distributed.group.WORLD"
            )


def refuse_spread_source(model: nn.Module) -> None:
    """Raise a CaptureError where a model's parameters are spread over processes."""
    if is_spread(model):
        raise CaptureError(
            f"{type(model).__name__} holds parameters that are spread over processes (DTensor, "
            "FSDP2), which torch.export cannot take; capture it first, then spread the Program"
        )


def is_wrapped(module: nn.Module) -> bool:
    """Tell whether `fully_shard` was called on this very module."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def reshard(program: nn.Module) -> None:
    """Let a wrapped Program give back the whole parameters that its last forward gathered."""
    if is_wrapped(program):
        module: Any = program
        module.reshard()


def check_root_alone(program: nn.Module) -> None:
    """Raise a PassError where a part of a Program is wrapped: it is never called or gathered."""
    for path, module in program.named_modules():
        if path and is_wrapped(module):
            raise PassError(
                f"fully_shard was called on {path!r}; a Program runs as one graph and never calls "
                "its parts, so what they hold would not be gathered: call fully_shard on the "
                "Program itself alone"
            )


def check_takes_masks(program: nn.Module) -> None:
    """Raise a PassError where a whole mask will not fit what FSDP2 gathers of a parameter."""
    for held in _held(program):
        dtype = held.mp_policy.param_dtype
        if held.is_dtensor:
            raise PassError(
                "the Program's parameters were DTensors before fully_shard and are so again in "
                "forward, where a whole mask does not fit; prune first, then call fully_shard"
            )
        if dtype not in (None, held.sharded_param.dtype):
            raise PassError(
                f"fully_shard's MixedPrecisionPolicy casts parameters to {dtype}, which a product "
                f"with a mask of {held.sharded_param.dtype} would undo; leave param_dtype out, and "
                "use torch.autocast"
            )


def swaps_of(
    program: nn.Module,
    parameters: Mapping[nn.Module, Mapping[str, Any]],
    values: Mapping[int, torch.Tensor],
) -> Iterator[tuple[Any, str, Any]]:
    """Yield (object, attribute, new value) for what FSDP2 must learn of an edit.

    `parameters` is what each module will hold as its `_parameters`, `values` the part that a
    Parameter will hold, by its id, where that changes.
    """
    for held in _held(program):
        info, parameter = held._module_info, held.sharded_param
        yield info, "param_name", _name_in(parameters[info.module], parameter)
        names = [_name_in(parameters[module], parameter) for module in info.shared_modules]
        yield info, "shared_param_names", names
        if id(parameter) in values:
            padded, local = _pad(held, values[id(parameter)])
            yield held, "_sharded_param_data", padded
            yield parameter, "_local_tensor", local


def _held(program: nn.Module) -> list[Any]:
    """Return FSDP2's records of a wrapped Program's parameters."""
    if not is_wrapped(program):
        return []
    module: Any = program
    try:
        groups = module._get_fsdp_state()._fsdp_param_groups
        return [held for group in groups for held in group.fsdp_params]
    except AttributeError as error:
        raise PassError(
            f"torch {torch.__version__} keeps FSDP2's parameters elsewhere ({error}); prune first, "
            "then call fully_shard"
        ) from error


def _name_in(parameters: Mapping[str, Any], parameter: Any) -> str:
    found = [name for name, held in parameters.items() if held is parameter]
    if not found:
        raise PassError("FSDP2 holds a parameter that the Program no longer has")
    return found[0]


def _pad(held: Any, local: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flat, padded part that FSDP2 gathers from, and the part as a view of it."""
    dim = held.fsdp_placement.dim
    padded = local.new_zeros(held.padded_sharded_param_size)
    length = local.shape[dim] if local.numel() else 0
    view = padded.narrow(dim, 0, length)
    if length:
        view.copy_(local)
    return padded.view(-1), view
