"""Tensors for a safetensors file: each piece of memory once, however many tensors look at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from fxprune.errors import FormatError
from fxprune.saved_document import SavedTensor
from fxprune.saved_values import decode_dtype, encode_dtype

__all__ = ["TensorWriter", "decode_tensors", "names_of"]

_KINDS = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
)
# The format has no complex numbers everywhere: they are stored as pairs of real ones.
_PAIRS = {torch.complex64: torch.float32, torch.complex128: torch.float64}


@dataclass
class TensorWriter:
    """Collects the tensors of a Program.

    Attributes:
        records: what the document says of each tensor, in the order of `add`.
        data: what the file holds, by key.
    """

    records: list[SavedTensor] = field(default_factory=list[SavedTensor])
    data: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    _numbers: dict[int, int] = field(default_factory=dict[int, int])
    _keys: dict[_View, str] = field(default_factory=dict[Any, str])

    def survey(self, named: Mapping[str, torch.Tensor]) -> None:
        """Look which tensors are views of the same memory, which is written once.

        Args:
            named: every tensor by its names, before any is added.

        Raises:
            FormatError: a tensor is of a kind that safetensors does not hold, or is another view
                of memory that a tensor before it looks at.
        """
        for name, tensor in named.items():
            _check(name, tensor)
            self._keys.setdefault(_view_of(tensor), name)
        spans = sorted(
            (view.memory, view.begin, view.end, name)
            for view, name in self._keys.items()
            if view.begin < view.end
        )
        for (memory, _, end, name), (other_memory, begin, _, other) in pairwise(spans):
            if memory == other_memory and begin < end:
                raise FormatError(
                    f"{other!r} and {name!r} are different views of the same memory, which a .fxp "
                    "cannot hold; clone one of them"
                )

    def add(self, name: str, tensor: torch.Tensor) -> int:
        """Take a tensor, and return its number; the same for the same object.

        Args:
            name: one of its names, as the survey had it.
            tensor: a parameter or a buffer.
        """
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self.records)
            self.records.append(self._record(tensor))
        return self._numbers[id(tensor)]

    def _record(self, tensor: torch.Tensor) -> SavedTensor:
        key = self._keys[_view_of(tensor)]
        if key not in self.data:
            self.data[key] = _stored(tensor.detach())
        is_permuted = not tensor.is_contiguous() and _is_dense(tensor.shape, tensor.stride())
        return SavedTensor(
            data=key,
            dtype=encode_dtype(tensor.dtype),
            shape=list(tensor.shape),
            parameter=isinstance(tensor, nn.Parameter),
            grad=tensor.requires_grad,
            stride=list(tensor.stride()) if is_permuted else None,
        )


class _View(NamedTuple):
    """The bytes of memory that a tensor looks at, and how."""

    memory: int
    begin: int
    end: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]


def _view_of(tensor: torch.Tensor) -> _View:
    shape, stride = tensor.shape, tensor.stride()
    steps = zip(shape, stride, strict=True)
    extent = 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in steps)
    begin = int(tensor.storage_offset()) * tensor.itemsize
    end = begin + extent * tensor.itemsize
    return _View(tensor.untyped_storage()._cdata, begin, end, tensor.dtype, shape, stride)


def decode_tensors(
    records: list[SavedTensor], data: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """Return the tensors of a file, buffers and parameters alike as plain tensors.

    Args:
        records: what the document says of them.
        data: what the file holds, by key; not shared with anything else.

    Raises:
        FormatError: a record does not fit the data, or some data has no record.
    """
    used = {record.data for record in records}
    extra = next((key for key in data if key not in used), None)
    if extra is not None:
        raise FormatError(f"tensor {extra[:100]!a}: the document says nothing of it")
    made: dict[Any, torch.Tensor] = {}
    found: list[torch.Tensor] = []
    for at, record in enumerate(records):
        where = f"tensor {record.data[:100]!a}"
        if record.data not in data:
            raise FormatError(f"tensors[{at}]: there is no {where}")
        key = record.model_dump_json(exclude={"grad", "parameter"})
        if key not in made:
            made[key] = _decoded(record, data[record.data], where)
        found.append(_as_recorded(record, made[key], where))
    return found


def _as_recorded(record: SavedTensor, tensor: torch.Tensor, where: str) -> torch.Tensor:
    if record.grad and not (tensor.is_floating_point() or tensor.is_complex()):
        raise FormatError(f"{where}: a tensor of {record.dtype} requires no gradient")
    if record.parameter:
        return nn.Parameter(tensor, requires_grad=record.grad)
    # Two records of one piece of memory are two tensors that share it.
    return tensor.detach().requires_grad_(record.grad)


def _decoded(record: SavedTensor, data: torch.Tensor, where: str) -> torch.Tensor:
    dtype = decode_dtype(record.dtype)
    if data.dtype is not _PAIRS.get(dtype, dtype) or (dtype in _PAIRS and not _has_pairs(data)):
        raise FormatError(f"{where}: the document says {record.dtype}, the data is {data.dtype}")
    found = torch.view_as_complex(data) if dtype in _PAIRS else data
    shape, stride = tuple(record.shape), record.stride
    if tuple(found.shape) != shape:
        raise FormatError(f"{where}: the document says {shape}, the data is {tuple(found.shape)}")
    if stride is None:
        return found
    if not _is_dense(shape, tuple(stride)):
        raise FormatError(f"{where}: the strides {stride} do not fit the shape {shape}")
    return torch.empty_strided(shape, stride, dtype=dtype).copy_(found)


def _has_pairs(data: torch.Tensor) -> bool:
    return data.dim() > 0 and data.shape[-1] == 2


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    plain = torch.view_as_real(tensor.resolve_conj()) if tensor.dtype in _PAIRS else tensor
    return plain.resolve_neg().cpu().contiguous()


def _check(name: str, tensor: torch.Tensor) -> None:
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        what = f"a {type(tensor).__name__}"
    elif tensor.layout is not torch.strided or tensor.is_quantized:
        what = f"a {str(tensor.layout).removeprefix('torch.')} or quantized tensor"
    elif tensor.is_meta:
        what = "on the meta device and has no values"
    elif tensor.dtype not in (*_KINDS, *_PAIRS):
        what = f"of {tensor.dtype}"
    else:
        return
    raise FormatError(f"{name!r} is {what}, which a .fxp cannot hold")


def _is_dense(shape: tuple[int, ...] | torch.Size, stride: tuple[int, ...]) -> bool:
    """Tell whether a tensor is a contiguous one with its dimensions in another order."""
    if len(shape) != len(stride) or 0 in shape:
        return False
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size == 1:
            continue
        if step != expected:
            return False
        expected *= size
    return True


def names_of(root: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer under every one of its names, in the tree's order."""
    yield from root.named_parameters(remove_duplicate=False)
    yield from root.named_buffers(remove_duplicate=False)
