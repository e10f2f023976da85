"""Which dimensions of the example inputs are the batch, and how export is told."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError

__all__ = ["Batched", "argument_names", "batched", "positional_keywords"]


@dataclass(frozen=True)
class Batched:
    """Example inputs ready for export.

    Args:
        args: positional arguments, a batch of one doubled.
        kwargs: keyword arguments, likewise.
        dims: for each leaf of `(args, kwargs)` its batch dimension, or None.
        names: names of the positional arguments.
        labels: a readable name for each leaf.
        shared: the leaves that share the batch, by position.
        by_name: whether the caller named the dimension of each input.
        mixed: whether a doubled batch of one stands beside other sizes, so that the doubling may
            be wrong.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dims: tuple[int | None, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    shared: tuple[int, ...]
    by_name: bool
    mixed: bool

    @property
    def shapes(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The dimensions as `torch.export` takes them, nested like `(args, kwargs)`."""
        leaves, tree = pytree.tree_flatten((self.args, self.kwargs))
        shapes = [
            {dim: torch.export.Dim.AUTO} if dim is not None else None
            for dim, _ in zip(self.dims, leaves, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(shapes, tree)
        return tuple(args), dict(kwargs)


def batched(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: Any,
    *,
    double: bool = True,
) -> Batched:
    """Find the batch dimensions of the example and double a batch of one.

    torch.export takes a size of 1 for a constant, so such an example is joined with itself, on
    those inputs that share the batch.

    Args:
        model: whose forward names the arguments.
        args: positional example inputs.
        kwargs: keyword example inputs; taken in the order of forward's signature.
        batch: a dimension for every tensor, None for a static graph, or a pytree of dimensions:
            a mapping by argument name or a tuple beside `args`.
        double: whether to double; else a size of 1 stays, and is static.

    Raises:
        CaptureError: `batch` does not fit the arguments; the message names `batch=`.
    """
    names = argument_names(model, args)
    kwargs = _in_order(model, kwargs)
    tree = {**dict(zip(names, args, strict=True)), **kwargs}
    paths, _ = pytree.tree_flatten_with_path(tree)
    labels = tuple(f"{_key(path[0])}{pytree.keystr(path[1:])}" for path, _ in paths)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    dims = _named_dims(labels, leaves, batch)
    by_name = dims is None
    if dims is None:
        dims = _given_dims(tree, args, names, batch)
    _check_dims(labels, leaves, dims)
    if not double:
        pairs = zip(leaves, dims, strict=True)
        dims = [None if dim is None or leaf.shape[dim] == 1 else dim for leaf, dim in pairs]
    sizes = {i: leaves[i].shape[dim] for i, dim in enumerate(dims) if dim is not None}
    first = next(iter(sizes.values()), 0)
    shared = tuple(i for i, size in sizes.items() if by_name or size == first)
    for i in shared:
        if sizes[i] == 1:
            leaves[i] = torch.cat([leaves[i], leaves[i]], dims[i] or 0)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    mixed = first == 1 and not by_name and len(set(sizes.values())) > 1
    return Batched(
        tuple(args), dict(kwargs), tuple(dims), names, labels, shared, by_name=by_name, mixed=mixed
    )


def positional_keywords(model: nn.Module, given: int, keywords: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keyword arguments that could as well be given by position, after the others.

    Args:
        model: whose forward names the arguments.
        given: how many arguments are given by position.
        keywords: the keyword arguments, in the order of forward's signature.
    """
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())[given:]
    except (TypeError, ValueError):
        return ()
    pairs = zip(parameters, keywords, strict=False)
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return tuple(key for _, key in takewhile(lambda pair: _is(*pair, plain), pairs))


def _is(parameter: inspect.Parameter, name: str, kind: Any) -> bool:
    return parameter.name == name and parameter.kind is kind


def _in_order(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        order = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return kwargs
    rank = {name: i for i, name in enumerate(order)}
    return dict(sorted(kwargs.items(), key=lambda item: rank.get(item[0], len(rank))))


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
    found, given = pytree.tree_flatten(dim)
    if given != tree or not all(d is None or type(d) is int for d in found):
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
