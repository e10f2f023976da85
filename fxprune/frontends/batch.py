"""Which dimensions of the example inputs are the batch, and how export is told."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError


@dataclass(frozen=True)
class Batched:
    """Example inputs ready for export.

    Args:
        args: positional arguments, a batch of one doubled.
        kwargs: keyword arguments, likewise.
        dims: for each leaf of `(args, kwargs)` its batch dimension, or None.
        names: names of the positional arguments.
        positional: the keyword arguments that could as well follow by position.
        labels: a readable name for each leaf.
        shared: the leaves that share the batch, by position.
        by_name: whether the caller named the dimension of each input.
        mixed: whether a doubled batch of one stands beside other sizes, so that the doubling may
            be wrong.
        more: for each leaf its other dimensions that are dynamic; empty where there are none.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dims: tuple[int | None, ...]
    names: tuple[str, ...]
    positional: tuple[str, ...]
    labels: tuple[str, ...]
    shared: tuple[int, ...]
    by_name: bool
    mixed: bool
    more: tuple[tuple[int, ...], ...] = ()

    @property
    def shapes(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The dimensions as `torch.export` takes them, nested like `(args, kwargs)`."""
        tree = pytree.tree_structure((self.args, self.kwargs))
        pairs = zip(self.dims, self.more or ((),) * len(self.dims), strict=True)
        dims = [None if dim is None else frozenset({dim, *more}) for dim, more in pairs]
        args, kwargs = _as_lists(pytree.tree_unflatten(dims, tree))
        return tuple(args), dict(kwargs)


def _as_lists(dims: Any) -> Any:
    """Return nested dimensions with lists where values have nodes of their own, as dataclasses."""
    if dims is None or isinstance(dims, frozenset):
        return None if dims is None else dict.fromkeys(sorted(dims), torch.export.Dim.AUTO)
    if isinstance(dims, dict):
        return {key: _as_lists(value) for key, value in dims.items()}
    if type(dims) in (list, tuple):
        return type(dims)(_as_lists(value) for value in dims)
    if isinstance(dims, tuple):
        return type(dims)(*map(_as_lists, dims))  # a namedtuple
    return [_as_lists(value) for value in pytree.SUPPORTED_NODES[type(dims)].flatten_fn(dims)[0]]


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
    labels = _labels(tree)
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
    return Batched(
        tuple(args),
        dict(kwargs),
        tuple(dims),
        names,
        _positional(model, len(names), tuple(kwargs)),
        labels,
        shared,
        by_name=by_name,
        mixed=first == 1 and not by_name and len(set(sizes.values())) > 1,
    )


def exact(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dims: list[list[int]]
) -> Batched:
    """Return inputs as they are, with any dimensions dynamic.

    Args:
        model: whose forward names the arguments.
        args: positional inputs.
        kwargs: keyword inputs, in the order of forward's signature.
        dims: for each leaf of `(args, kwargs)` its dynamic dimensions.
    """
    names = argument_names(model, args)
    return Batched(
        args,
        kwargs,
        tuple(at[0] if at else None for at in dims),
        names,
        _positional(model, len(names), tuple(kwargs)),
        _labels({**dict(zip(names, args, strict=True)), **kwargs}),
        tuple(i for i, at in enumerate(dims) if at),
        by_name=True,
        mixed=False,
        more=tuple(tuple(at[1:]) for at in dims),
    )


def name_arguments(model: nn.Module, example: Batched) -> None:
    """Give a forward with `*args` or `**kwargs` a signature with the example's names.

    torch.export names its inputs, and their dimensions, by the signature.

    Args:
        model: a private copy; its forward is wrapped.
        example: the arguments.
    """
    kinds = inspect.Parameter
    original: Any = model.forward
    try:
        found = {p.kind for p in inspect.signature(original).parameters.values()}
    except (TypeError, ValueError):
        return
    if not found & {kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD}:
        return

    own = getattr(original, "__self__", None) is model

    # A method, since a copy of the model must run its own forward, and not this model's.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return original.__func__(self, *args, **kwargs) if own else original(*args, **kwargs)

    names = ("self", *example.names)
    parameters = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in names]
    parameters += [kinds(name, kinds.KEYWORD_ONLY) for name in example.kwargs]
    vars(forward)["__signature__"] = inspect.Signature(parameters)
    model.forward = MethodType(forward, model)


def _positional(model: nn.Module, given: int, keywords: tuple[str, ...]) -> tuple[str, ...]:
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


def _labels(tree: dict[str, Any]) -> tuple[str, ...]:
    paths, _ = pytree.tree_flatten_with_path(tree)
    return tuple(f"{_key(path[0])}{pytree.keystr(path[1:])}" for path, _ in paths)


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
