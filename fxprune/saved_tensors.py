"""Tensors for a safetensors file: each piece of memory once, however many tensors look at it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    _seen: dict[int, int] = field(default_factory=dict[int, int])
    _spans: dict[int, _Span] = field(default_factory=dict[int, Any])

    def survey(self, named: Mapping[str, torch.Tensor]) -> None:
        """Look which tensors share memory.

        Args:
            named: every tensor by its names, before any is added.

        Raises:
            FormatError: a tensor is of a kind that safetensors does not hold.
        """
        for name, tensor in named.items():
            _check(name, tensor)
            memory = tensor.untyped_storage()._cdata
            self._spans.setdefault(memory, _Span(name)).add(name, tensor)

    def add(self, name: str, tensor: torch.Tensor) -> int:
        """Take a tensor, and return its number; the same for the same object.

        Args:
            name: one of its names, as the survey had it.
            tensor: a parameter or a buffer.
        """
        if id(tensor) not in self._seen:
            self._seen[id(tensor)] = len(self.records)
            self.records.append(self._record(tensor))
        return self._seen[id(tensor)]

    def _record(self, tensor: torch.Tensor) -> SavedTensor:
        span = self._spans[tensor.untyped_storage()._cdata]
        plain = tensor.detach()
        record = SavedTensor(
            data=span.name,
            dtype=encode_dtype(tensor.dtype),
            shape=list(tensor.shape),
            parameter=isinstance(tensor, nn.Parameter),
            grad=tensor.requires_grad,
        )
        if span.is_shared:
            record.stride = list(tensor.stride())
            record.offset = int(tensor.storage_offset() - span.low)
            length = span.high - span.low
            plain = plain.as_strided((length,), (1,), span.low)
        elif not plain.is_contiguous() and _is_dense(plain.shape, plain.stride()):
            record.stride = list(tensor.stride())
        if span.name not in self.data:
            self.data[span.name] = _stored(plain)
        return record


class _Span:
    """A piece of memory, and which part of it tensors look at."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.low, self.high = 2**63, 0
        self.views: set[tuple[Any, ...]] = set()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self.views.add((tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()))
        kinds = {view[0] for view in self.views}
        overlaps = [view for view in self.views if view[1].numel() > _extent(view[1], view[2])]
        if len(self.views) > 1 and (len(kinds) > 1 or overlaps):
            what = "as another dtype" if len(kinds) > 1 else "and repeats entries of it"
            raise FormatError(
                f"{name!r} shares memory with {self.name!r} {what}, which a .fxp cannot hold; "
                "clone one of them"
            )
        start = tensor.storage_offset()
        self.low = min(self.low, start)
        self.high = max(self.high, start + _extent(tensor.shape, tensor.stride()))

    @property
    def is_shared(self) -> bool:
        return len(self.views) > 1


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
    if record.offset is not None:
        return _view(found, shape, tuple(stride or ()), record.offset, where)
    if tuple(found.shape) != shape:
        raise FormatError(f"{where}: the document says {shape}, the data is {tuple(found.shape)}")
    if stride is None:
        return found
    if not _is_dense(shape, tuple(stride)):
        raise FormatError(f"{where}: the strides {stride} do not fit the shape {shape}")
    return torch.empty_strided(shape, stride, dtype=dtype).copy_(found)


def _view(
    data: torch.Tensor, shape: tuple[int, ...], stride: tuple[int, ...], offset: int, where: str
) -> torch.Tensor:
    fits = len(shape) == len(stride) and min((0, offset, *shape, *stride)) == 0 and data.dim() == 1
    if (
        not fits
        or offset + _extent(shape, stride) > data.numel()
        or math.prod(shape) > data.numel()
    ):
        raise FormatError(f"{where}: the view {shape} from {offset} on lies outside of it")
    return data.as_strided(shape, stride, offset)


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


def _extent(shape: tuple[int, ...] | torch.Size, stride: tuple[int, ...]) -> int:
    """Return how many entries of memory a tensor reaches over."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


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
