"""Which dimensions of the example inputs are the batch, and how export is told."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError

__all__ = ["Batched", "argument_names", "batched"]


@dataclass(frozen=True)
class Batched:
    """Example inputs ready for export.

    Args:
        args: positional arguments, a batch of one doubled.
        kwargs: keyword arguments, likewise.
        dims: for each leaf of `(args, kwargs)` its batch dimension, or None.
        names: names of the positional arguments.
        labels: a readable name for each leaf.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dims: tuple[int | None, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def dynamic_shapes(self) -> Any:
        """The dimensions in the form that `torch.export.export` takes."""
        leaves, tree = pytree.tree_flatten((self.args, self.kwargs))
        shapes = [
            {dim: torch.export.Dim.AUTO} if dim is not None else None
            for dim, _ in zip(self.dims, leaves, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(shapes, tree)
        return dict(zip(self.names, args, strict=True)) | dict(kwargs)


def batched(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Any) -> Batched:
    """Find the batch dimensions of the example and double a batch of one.

    torch.export takes a size of 1 for a constant, so such an example is joined with itself, on
    those inputs that share the batch.

    Args:
        model: whose forward names the arguments.
        args: positional example inputs.
        kwargs: keyword example inputs.
        batch: a dimension for every tensor, None for a static graph, or a pytree of dimensions:
            a mapping by argument name or a tuple beside `args`.

    Raises:
        CaptureError: `batch` does not fit the arguments; the message names `batch=`.
    """
    names = argument_names(model, args)
    tree = {**dict(zip(names, args, strict=True)), **kwargs}
    paths, _ = pytree.tree_flatten_with_path(tree)
    labels = tuple(f"{_key(path[0])}{pytree.keystr(path[1:])}" for path, _ in paths)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    dims = _named_dims(labels, leaves, batch)
    if dims is None:
        dims = _given_dims(tree, args, names, batch)
    _check_dims(labels, leaves, dims)
    sizes = [leaf.shape[dim] for leaf, dim in zip(leaves, dims, strict=True) if dim is not None]
    shared = sizes[0] if sizes else None
    pairs = zip(leaves, dims, strict=True)
    dims = [dim if dim is not None and leaf.shape[dim] == shared else None for leaf, dim in pairs]
    if shared == 1:
        leaves = [
            leaf if dim is None else torch.cat([leaf, leaf], dim)
            for leaf, dim in zip(leaves, dims, strict=True)
        ]
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return Batched(tuple(args), dict(kwargs), tuple(dims), names, labels)


def _key(entry: Any) -> str:
    return str(entry.key)


def argument_names(model: nn.Module, args: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the names that forward gives its positional arguments (`xs_0` for `*xs`)."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return tuple(f"arg_{i}" for i in range(len(args)))
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in plain][: len(args)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    if rest is None and len(names) < len(args):
        raise CaptureError(
            f"forward takes {len(names)} positional arguments, but args has {len(args)}"
        )
    return (*names, *(f"{rest}_{i}" for i in range(len(args) - len(names))))


def _named_dims(labels: tuple[str, ...], leaves: list[Any], batch: Any) -> list[int | None] | None:
    if batch is None:
        return list[int | None]([None] * len(leaves))
    if not isinstance(batch, int) or isinstance(batch, bool):
        return None
    dims: list[int | None] = []
    for leaf in leaves:
        has_dim = isinstance(leaf, torch.Tensor) and -leaf.dim() <= batch < leaf.dim()
        dims.append(batch % leaf.dim() if has_dim else None)
    if not any(dim is not None for dim in dims) and any(map(_has_dims, leaves)):
        raise CaptureError(f"batch={batch}: no input has that dimension; inputs: {labels}")
    return dims


def _has_dims(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0


def _given_dims(
    tree: dict[str, Any], args: tuple[Any, ...], names: tuple[str, ...], batch: Any
) -> list[int | None]:
    """Spread a pytree of dimensions over the leaves of the arguments."""
    if isinstance(batch, Mapping):
        given: dict[str, Any] = dict(batch)  # pyright: ignore
    elif isinstance(batch, (tuple, list)) and len(batch) <= len(args):  # pyright: ignore
        given = dict(zip(names, batch, strict=False))  # pyright: ignore
    else:
        raise CaptureError(f"batch={batch!r}: give an int, None, or a dimension for each argument")
    unknown = [name for name in given if name not in tree]
    if unknown:
        raise CaptureError(f"batch= names {unknown[0]!r}, but the arguments are {list(tree)}")
    dims: list[int | None] = []
    for name, value in tree.items():
        dims.extend(_spread(given.get(name), value, name))
    return dims


def _spread(dim: Any, value: Any, name: str) -> list[int | None]:
    leaves, tree = pytree.tree_flatten(value)
    if dim is None or (isinstance(dim, int) and not isinstance(dim, bool)):
        return [dim if isinstance(leaf, torch.Tensor) else None for leaf in leaves]
    found = pytree.tree_flatten(dim)[0]
    if len(found) != tree.num_leaves or not all(d is None or isinstance(d, int) for d in found):
        raise CaptureError(f"batch= for {name!r} is {dim!r}, which does not fit the argument")
    return found


def _check_dims(labels: tuple[str, ...], leaves: list[Any], dims: list[int | None]) -> None:
    for i, (label, leaf, dim) in enumerate(zip(labels, leaves, dims, strict=True)):
        if dim is None:
            continue
        if not isinstance(leaf, torch.Tensor) or not -leaf.dim() <= dim < leaf.dim():
            raise CaptureError(f"batch={dim}: input {label!r} has no such dimension")
        dims[i] = dim % leaf.dim()
        if leaf.shape[dim] == 0:
            raise CaptureError(f"batch={dim}: the example {label!r} is empty there; give one row")
