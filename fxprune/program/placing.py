"""Which entries of a DTensor this process holds, and DTensors made of such parts.

A part is a box: along each dimension an increasing sequence of coordinates. So the entries of a
part, in flat order, are in the flat order of the whole tensor too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from fxprune.errors import PassError


def layout_of(tensor: Any) -> str:
    """Return in words how a tensor is spread: the same on each process that holds a part."""
    mesh = tensor.device_mesh
    return f"{tensor.placements} over a mesh of shape {tuple(mesh.shape)}"


def coordinates(tensor: Any, name: str = "a parameter") -> tuple[torch.Tensor, ...]:
    """Return, for each dimension of a DTensor, which of its coordinates this process holds, int64.

    PassError where it is a pending sum, or its part is no box of the whole.
    """
    placements, mesh = tensor.placements, tensor.device_mesh
    if any(placement.is_partial() for placement in placements):
        raise PassError(
            f"{name!r} is a sum that its processes have not yet made ({placements}); call "
            "redistribute on it first"
        )
    local = tensor._local_tensor
    if mesh.get_coordinate() is None:
        return tuple(torch.empty(0, dtype=torch.int64) for _ in tensor.shape)
    found: list[torch.Tensor] = []
    for dim, size in enumerate(tensor.shape):
        shape = [1] * len(tensor.shape)
        shape[dim] = size
        # Let torch cut a line of coordinates: without a source rank nothing is sent.
        line = torch.arange(size).view(shape)
        along = [p if getattr(p, "dim", None) == dim else Replicate() for p in placements]
        cut: Any = distribute_tensor(line, mesh, along, src_data_rank=None)
        found.append(cut.to_local().reshape(-1).cpu())
    is_box = tuple(map(len, found)) == tuple(local.shape) or local.numel() == 0
    if not is_box or any(bool((line.diff() <= 0).any()) for line in found):
        raise PassError(
            f"{name!r}: the part of shape {tuple(local.shape)} is not what {placements} cuts out "
            f"of {tuple(tensor.shape)}; spread it with distribute_tensor or fully_shard"
        )
    return tuple(found)


def piece(whole: torch.Tensor, tensor: Any) -> torch.Tensor:
    """Return of a whole tensor what this process holds of a DTensor of its shape."""
    shape = tensor._local_tensor.shape
    if whole.dim() == 0 and tensor.device_mesh.get_coordinate() is not None:
        return whole
    if tensor._local_tensor.numel() == 0:
        return whole.new_empty(shape)
    for dim, line in enumerate(coordinates(tensor)):
        if len(line) == whole.shape[dim]:
            continue
        first, last = int(line[0]), int(line[-1])
        if last - first + 1 == len(line):
            whole = whole.narrow(dim, first, len(line))
        else:
            whole = whole.index_select(dim, line.to(whole.device))
    return whole


def place(local: torch.Tensor, tensor: Any, shape: torch.Size | None = None) -> Any:
    """Return a DTensor of this process's contiguous part, spread as another one is."""
    size: torch.Size = tensor.shape if shape is None else shape
    stride = torch.empty(size, device="meta").stride()
    mesh, placements = tensor.device_mesh, tensor.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=size, stride=stride)


def spread(tensor: Any, other: Any) -> Any:
    """Return a tensor as a DTensor that is spread as another one of its shape is."""
    if not isinstance(tensor, DTensor):
        return place(piece(tensor, other).contiguous(), other)
    if tensor.device_mesh != other.device_mesh:
        return place(piece(tensor.full_tensor(), other).contiguous(), other)
    if tensor.placements == other.placements:
        return tensor
    return tensor.redistribute(other.device_mesh, other.placements)


def flat_indices(
    lines: tuple[torch.Tensor, ...], shape: torch.Size, positions: torch.Tensor
) -> torch.Tensor:
    """Return the flat indices in a whole of `shape` of flat positions in a part (its `lines`)."""
    found = torch.zeros_like(positions)
    step = 1
    for size, line in zip(reversed(shape), reversed(lines), strict=True):
        found += line.to(positions.device)[positions % max(len(line), 1)] * step
        positions = positions // max(len(line), 1)
        step *= size
    return found


def lowest_rank(tensor: Any) -> int:
    """Return the lowest global rank of a DTensor's mesh."""
    return int(tensor.device_mesh.mesh.min())


def is_first_replica(tensor: Any) -> bool:
    """Tell whether this process is the first of those in the mesh that hold the same part."""
    at = tensor.device_mesh.get_coordinate()
    if at is None:
        return False
    pairs = zip(at, tensor.placements, strict=True)
    return all(place == 0 for place, placement in pairs if placement.is_replicate())


def gather_bits(
    local: torch.Tensor, tensor: Any, gather: Callable[[Any], torch.Tensor]
) -> torch.Tensor:
    """Return a whole bool tensor of its parts, sending one bit an entry where it can.

    `tensor` is a DTensor of the whole's shape, spread as the bits are; `gather` makes a DTensor
    whole.
    """
    split = {getattr(placement, "dim", None) for placement in tensor.placements}
    free = [dim for dim in range(tensor.dim()) if dim not in split and tensor.shape[dim] > 1]
    local = local.reshape(tensor._local_tensor.shape)
    if not free:
        return gather(place(local.to(torch.uint8), tensor)).bool()
    dim = max(free, key=lambda d: tensor.shape[d])
    packed = _pack(local, dim)
    shape = torch.Size((*tensor.shape[:dim], packed.shape[dim], *tensor.shape[dim + 1 :]))
    return _unpack(gather(place(packed, tensor, shape)), dim, tensor.shape[dim])


def _weights(device: torch.device) -> torch.Tensor:
    return 2 ** torch.arange(8, dtype=torch.uint8, device=device)


def _pack(bits: torch.Tensor, dim: int) -> torch.Tensor:
    last = bits.movedim(dim, -1)
    padded = torch.nn.functional.pad(last, (0, -last.shape[-1] % 8))
    eights = padded.unflatten(-1, (padded.shape[-1] // 8, 8))
    return (eights * _weights(bits.device)).sum(-1, dtype=torch.uint8).movedim(-1, dim).contiguous()


def _unpack(packed: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    last = packed.movedim(dim, -1).unsqueeze(-1)
    bits = (last & _weights(packed.device)) != 0
    return bits.flatten(-2)[..., :size].movedim(-1, dim)
