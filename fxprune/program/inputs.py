"""What a Program takes: names, shapes with symbolic dimensions, dtypes, ranges of integers.

Nested arguments are kept in a form that pickles. Captured without an example, a Program knows names
and defaults alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.errors import InputError
from fxprune.words import dtype_name


class Nesting:
    """The structure of a value, kept as the value with its leaves numbered.

    Example:
        >>> nesting = Nesting({"a": None, "b": [True]})
        >>> nesting.unflatten(["x", "y"])
        {'a': 'x', 'b': ['y']}
    """

    def __init__(self, skeleton: Any) -> None:
        self.tree = pytree.tree_structure(skeleton)
        numbers = list(range(self.tree.num_leaves))
        self.skeleton = pytree.tree_unflatten(numbers, self.tree)

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return the structure with these leaves."""
        return pytree.tree_unflatten(list(leaves), self.tree)

    def __reduce__(self) -> tuple[Any, ...]:
        return Nesting, (self.skeleton,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Nesting:
        return self


Dim = int | str


@dataclass(frozen=True)
class Input:
    """One leaf of the arguments: a tensor, or a constant that capture fixed."""

    name: str  # with its place inside where it is nested: `batch['ids']`
    # A string is a symbolic dimension, equal wherever it has the same name.
    shape: tuple[Dim, ...] = ()
    dtype: torch.dtype | None = None  # None for a constant
    low: int | None = None  # of integers, the smallest in the example
    high: int | None = None  # and the largest
    constant: Any = None

    def __str__(self) -> str:
        if self.dtype is None:
            return f"{self.name} = {self.constant!r}"
        kind = dtype_name(self.dtype)
        seen = "" if self.low is None else f" in {self.low}..{self.high}"
        return f"{self.name}: {kind}[{', '.join(map(str, self.shape))}]{seen}"

    def draw(
        self, sizes: Mapping[str, int], generator: torch.Generator, dtype: torch.dtype
    ) -> torch.Tensor:
        """Draw a tensor of this shape: normal for floats, within the range seen for integers."""
        shape = [size_of(dim, sizes) for dim in self.shape]
        if dtype.is_floating_point or dtype.is_complex:
            wide = torch.complex128 if dtype.is_complex else torch.float64
            return torch.randn(shape, generator=generator, dtype=wide).to(dtype)
        low, high = self.low or 0, self.high or 0
        return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def size_of(dim: Dim, sizes: Mapping[str, int]) -> int:
    """Return the size of a dimension; `2*batch` is twice the size of `batch`."""
    if isinstance(dim, int):
        return dim
    factor, star, symbol = dim.rpartition("*")
    return (int(factor) if star else 1) * sizes[symbol]


@dataclass(frozen=True)
class InputSpec:
    """The arguments of a Program's forward."""

    inputs: tuple[Input, ...]  # the leaves of `(args, kwargs)` in pytree order
    nesting: Nesting
    names: tuple[str, ...]  # of the positional arguments
    keywords: tuple[str, ...]  # of the keyword arguments, in order
    # Those of them that follow the positional ones in the source's signature.
    positional: tuple[str, ...] = ()
    # The model's own at capture: inputs of it follow the Program when it is moved.
    float_dtype: torch.dtype | None = None
    smallest: int = 1  # sizes of a symbolic dimension from which on the graph is right
    # The sizes of symbolic dimensions, by name: from, and up to or None.
    bounds: Mapping[str, tuple[int, int | None]] = field(
        default_factory=dict[str, tuple[int, int | None]]
    )

    def __str__(self) -> str:
        return ", ".join(map(str, self.inputs))

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the leaves of a call's arguments; InputError names one that does not fit."""
        leaves, tree = pytree.tree_flatten((args, kwargs))
        if tree != self.nesting.tree:
            ordered = _in_order_of((args, kwargs), self.nesting.skeleton)
            leaves, tree = pytree.tree_flatten(ordered)
        if tree != self.nesting.tree:
            raise InputError(
                f"the arguments are nested otherwise than at capture: {_describe_nesting(tree)} "
                f"instead of {_describe_nesting(self.nesting.tree)}; call with {self}"
            )
        sizes: dict[str, int] = {}
        for spec, leaf in zip(self.inputs, leaves, strict=True):
            self._check(spec, leaf, sizes)
        return leaves

    def _check(self, spec: Input, leaf: Any, sizes: dict[str, int]) -> None:
        if spec.dtype is None:
            same = leaf is spec.constant or (
                type(leaf) is type(spec.constant) and leaf == spec.constant
            )
            if not same:
                raise InputError(
                    f"input {spec.name} is fixed to {spec.constant!r} in the graph, not {leaf!r}; "
                    "capture again with the value you need"
                )
            return
        if not isinstance(leaf, torch.Tensor):
            raise InputError(f"input {spec} must be a tensor, not {type(leaf).__name__}")
        if leaf.dim() != len(spec.shape):
            raise InputError(f"input {spec} was given {tuple(leaf.shape)}")
        for dim, size in zip(spec.shape, leaf.shape, strict=True):
            wanted = dim
            if isinstance(dim, str):
                if size < self.smallest:
                    raise InputError(
                        f"input {spec} was given {tuple(leaf.shape)}: the graph is right from a "
                        f"batch of {self.smallest} on, since forward treats one row otherwise"
                    )
                low, high = self.bounds.get(dim, (0, None))
                if size < low or (high is not None and size > high):
                    raise InputError(
                        f"input {spec} was given {tuple(leaf.shape)}: {dim} is {low} to "
                        f"{'any size' if high is None else high}; export again with a wider range"
                    )
                if "*" in dim:
                    continue
                wanted = sizes.setdefault(dim, size)
            if size != wanted:
                raise InputError(
                    f"input {spec} was given {tuple(leaf.shape)}: {wanted} needed where {size} "
                    "stands; capture again with that shape, or name its batch dimension in batch="
                )

    def example(
        self,
        *,
        batch: int = 2,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Draw `(args, kwargs)` that fit, every symbolic dimension of size `batch`.

        Inputs that had the model's own floating dtype get `dtype`.
        """
        generator = torch.Generator().manual_seed(seed)
        sizes = {symbol: self._clamp(symbol, batch) for symbol in self.symbols}
        leaves: list[Any] = []
        for spec in self.inputs:
            if spec.dtype is None:
                leaves.append(spec.constant)
                continue
            follows = dtype is not None and spec.dtype == self.float_dtype
            kind = dtype if follows and dtype is not None else spec.dtype
            leaves.append(spec.draw(sizes, generator, kind).to(device))
        args, kwargs = self.nesting.unflatten(leaves)
        return tuple(args), dict(kwargs)

    def _clamp(self, symbol: str, size: int) -> int:
        low, high = self.bounds.get(symbol, (0, None))
        size = max(size, self.smallest, low)
        return size if high is None else min(size, high)

    @property
    def drawable(self) -> bool:
        """Whether `example` can draw arguments: shapes are known."""
        return True

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbolic dimensions, in order."""
        found = (
            dim.rpartition("*")[2] for i in self.inputs for dim in i.shape if isinstance(dim, str)
        )
        return tuple(dict.fromkeys(found))

    @property
    def signature(self) -> inspect.Signature:
        """The signature of forward, with `self`; constants have their value as default."""
        kinds = inspect.Parameter
        args, kwargs = self.nesting.unflatten(self.inputs)
        named = [*zip(self.names, args, strict=True), *((k, kwargs[k]) for k in self.keywords)]
        parameters: list[inspect.Parameter] = []
        trailing = True
        for name, tree in reversed(named):
            constant = all(leaf.dtype is None for leaf in pytree.tree_leaves(tree))
            by_position = name in self.names or name in self.positional
            trailing = trailing and (constant or not by_position)
            default: Any = kinds.empty
            if constant and (trailing or not by_position):
                default = pytree.tree_map(lambda leaf: leaf.constant, tree)
            kind = kinds.POSITIONAL_OR_KEYWORD if by_position else kinds.KEYWORD_ONLY
            parameters.append(kinds(name, kind, default=default))
        self_parameter = kinds("self", kinds.POSITIONAL_OR_KEYWORD)
        return inspect.Signature([self_parameter, *reversed(parameters)])


def _in_order_of(value: Any, skeleton: Any) -> Any:
    """Put the keys of dicts into the order that they had at capture."""
    if type(value) is dict and type(skeleton) is dict and value.keys() == skeleton.keys():
        return {key: _in_order_of(value[key], part) for key, part in skeleton.items()}
    if type(value) in (list, tuple) and len(value) == len(skeleton):
        return type(value)(_in_order_of(v, s) for v, s in zip(value, skeleton, strict=True))
    return value


def _describe_nesting(tree: pytree.TreeSpec) -> str:
    args, kwargs = pytree.tree_unflatten(["*"] * tree.num_leaves, tree)
    return f"args {args}, kwargs {kwargs}"


@dataclass(frozen=True)
class UnshapedSpec(InputSpec):
    """Arguments whose shapes are not known; each is handed to the graph as it is."""

    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, names: tuple[str, ...], defaults: Mapping[str, Any]) -> UnshapedSpec:
        """Return the spec of a forward with these arguments."""
        inputs = tuple(Input(name) for name in names)
        nesting = Nesting(((None,) * len(names), {}))
        return cls(inputs, nesting, names, (), defaults=dict(defaults))

    @property
    def drawable(self) -> bool:
        """Whether inputs can be drawn: not without shapes."""
        return False

    def __str__(self) -> str:
        return ", ".join(f"{name}: any" for name in self.names)

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the arguments, in order."""
        return [*args, *kwargs.values()]

    def example(
        self,
        *,
        batch: int = 2,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Raise an InputError, since nothing is known to draw."""
        raise InputError(
            f"the shapes of {', '.join(self.names)} are not known, since the program was captured "
            "from a traced graph without an example; capture that graph with args= and kwargs="
        )

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbolic dimensions: none is known."""
        return ()

    @property
    def signature(self) -> inspect.Signature:
        """The signature of forward, with `self`."""
        kinds = inspect.Parameter
        parameters = [
            kinds(name, kinds.POSITIONAL_OR_KEYWORD, default=self.defaults.get(name, kinds.empty))
            for name in ("self", *self.names)
        ]
        return inspect.Signature(parameters)
