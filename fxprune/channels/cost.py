"""What a Program costs: operations and activations, from the shapes in the graph, and seconds.

Two operations are counted for each multiply-add of products: convolutions, linear and bilinear
layers, matrix products, einsum, attention, and recurrent layers, at every step, layer and
direction. Norms count as two for each entry that they scale and shift, and as five more where they
also take its mean and variance. All else (activations, pooling, sums, softmax) is not counted.
"""

from __future__ import annotations

import ast
import math
import operator
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.node import Node

from fxprune.program import (
    EVAL,
    VALUE,
    Footprint,
    Program,
    example_of,
    fork,
    ops,
    parameter_of,
    parameters,
)

_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class Cost:
    """What one operator costs."""

    node: str  # its name in the graph
    op: str  # its canonical name
    flops: int
    activations: int  # entries of its output; 0 for norms
    parameters: tuple[str, ...]  # first names of those that it reads


@dataclass(frozen=True)
class Costs:
    """What one forward costs."""

    batch: int  # the size of every symbolic dimension
    rows: tuple[Cost, ...]  # the operators that are counted, in graph order
    unknown: tuple[str, ...] = ()  # nodes that would be counted, but whose shapes are not noted

    @property
    def flops(self) -> int:
        """Floating-point operations of all rows."""
        return sum(row.flops for row in self.rows)

    @property
    def activations(self) -> int:
        """Entries of the outputs of all products."""
        return sum(row.activations for row in self.rows)

    def of(self, *names: str) -> int:
        """Return the operations of operators of some names."""
        return sum(row.flops for row in self.rows if row.op in names)


class Shapes:
    """The shapes of a Program's nodes where all symbolic dimensions have one size."""

    def __init__(self, program: Program, batch: int) -> None:
        self.program, self.batch = program, batch

    def __call__(self, node: Any) -> tuple[int, ...]:
        """Return a node's shape; LookupError where it is not known."""
        if not isinstance(node, Node):
            raise LookupError("it is no tensor of the graph")
        name = parameter_of(self.program, node)
        if name is not None:
            return tuple(parameters.parameter(self.program, name).shape)
        if node.op == "get_attr":
            owner, _, attribute = str(node.target).rpartition(".")
            return tuple(getattr(self.program.get_submodule(owner), attribute).shape)
        noted = node.meta.get(VALUE)
        if noted is None:
            raise LookupError(f"the shape of {node.name} is not noted")
        return tuple(size_at(size, self.batch) for size in noted[0])


def size_at(size: int | str, batch: int) -> int:
    """Return a noted size where every symbol has one size; LookupError if it is no arithmetic.

    Example:
        >>> size_at("3*s77 + 1", 4)
        13
    """
    if isinstance(size, int):
        return size
    try:
        return _value(ast.parse(size, mode="eval").body, batch)
    except SyntaxError as error:
        raise LookupError(f"the size {size!r} cannot be read") from error


def _value(part: ast.expr, batch: int) -> int:
    match part:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name():
            return batch
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, batch)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_value(left, batch), _value(right, batch))
        case _:
            raise LookupError(f"the size {ast.unparse(part)!r} is no arithmetic")


def costs_of(program: Program, *, batch: int = 1) -> Costs:
    """Count what a forward in eval mode costs, every symbolic dimension of size `batch`.

    Example:
        >>> import torch
        >>> from fxprune.compiler import capture
        >>> costs_of(capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))).flops
        12
    """
    graphs = program.graphs
    chosen = [graphs[EVAL]] if EVAL in graphs else list(graphs.values())
    shapes, rows, unknown = Shapes(program, batch), list[Cost](), list[str]()
    for node in (node for graph in chosen for node in graph.nodes):
        rule = _RULES.get(ops.canonical_name(node.target)) if node.op == "call_function" else None
        if rule is None:
            continue
        name = ops.canonical_name(node.target)
        own = tuple(dict.fromkeys(_parameters(program, node)))
        try:
            active = 0 if name in _NORMS else math.prod(_output_shape(node, shapes))
            rows.append(Cost(node.name, name, rule(node, shapes), active, own))
        except LookupError:
            unknown.append(node.name)
    return Costs(batch, tuple(rows), tuple(unknown))


def _parameters(program: Program, node: Node) -> Iterator[str]:
    """Yield the parameters that a node reads, through masks and views perhaps."""
    for read in node.all_input_nodes:
        name = parameter_of(program, read)
        if name is not None:
            yield name
        elif read.op == "call_function" and ops.canonical_name(read.target) in _VIEWS:
            yield from _parameters(program, read)


def _output_shape(node: Node, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of a node's output; of several outputs, the first one's."""
    if VALUE in node.meta:
        return shapes(node)
    for user in node.users:
        if user.target is operator.getitem and user.args[1] == 0:
            return shapes(user)
    raise LookupError(f"the shape of {node.name} is not noted")


# How operators are counted

FlopRule = Callable[[Node, Shapes], int]


def _convolution(node: Node, shapes: Shapes) -> int:
    weight = shapes(ops.argument(node, "weight"))
    name = ops.canonical_name(node.target)
    transposed = "transpose" in name or (
        name == "convolution" and bool(ops.argument(node, "transposed"))
    )
    # Each entry of the output is a sum over a filter; transposed, each of the input is spread.
    entries = math.prod(shapes(node.args[0]) if transposed else shapes(node))
    return 2 * entries * math.prod(weight[1:])


def _product(node: Node, shapes: Shapes) -> int:
    added = ops.canonical_name(node.target) in ("addmm", "baddbmm")  # then a sum's term comes first
    return 2 * math.prod(shapes(node)) * shapes(node.args[int(added)])[-1]


def _bilinear(node: Node, shapes: Shapes) -> int:
    left, right = shapes(node.args[0])[-1], shapes(node.args[1])[-1]
    return 2 * math.prod(shapes(node)) * (left * right + left)


def _einsum(node: Node, shapes: Shapes) -> int:
    equation: Any = node.args[0]
    operands: Any = node.args[1]
    if not isinstance(equation, str) or "..." in equation:
        raise LookupError("its equation has an ellipsis")
    sizes: dict[str, int] = {}
    parts = equation.partition("->")[0].replace(" ", "").split(",")
    for letters, operand in zip(parts, operands, strict=True):
        sizes.update(zip(letters, shapes(operand), strict=True))
    return 2 * math.prod(sizes.values()) if len(parts) > 1 else 0


def _attention(node: Node, shapes: Shapes) -> int:
    query, key, value = (shapes(arg) for arg in node.args[:3])
    # Every query meets every key, and every score every value.
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(node: Node, shapes: Shapes) -> int:
    entering = shapes(node.args[0])
    steps = math.prod(entering[:-1])
    weights = [read for role, read in ops.roles(node) if role.startswith("weight_")]
    return 2 * steps * sum(math.prod(shapes(read)) for read in weights)


def _norm(node: Node, shapes: Shapes) -> int:
    each = _NORMS[ops.canonical_name(node.target)]
    return each * math.prod(shapes(node.args[0]))


# Operations for each entry of the input.
_NORMS = {
    "batch_norm": 2,
    **dict.fromkeys(("instance_norm", "group_norm", "layer_norm"), 7),
    **dict.fromkeys(("native_layer_norm", "rms_norm"), 7),
}
_VIEWS = frozenset({"t", "transpose", "permute", "view", "reshape", "numpy_T", "mT", "to", "slice"})
_CONVOLUTIONS = (
    *("conv1d", "conv2d", "conv3d", "convolution"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)
_RULES: Mapping[str, FlopRule] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "addmm", "baddbmm"), _product),
    **dict.fromkeys(ops.RECURRENT, _recurrent),
    **dict.fromkeys(_NORMS, _norm),
    "bilinear": _bilinear,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}

_ROUNDS = 5


@dataclass(frozen=True)
class Latency:
    """How long a forward takes, in eval mode without gradients.

    Args:
        batch: the size of every symbolic dimension.
        before: seconds, the median.
        after: seconds, the median, measured in turns with the other.
        rounds: how often each was run.
        threads: how many threads torch used.
    """

    batch: int
    before: float
    after: float
    rounds: int
    threads: int

    def __str__(self) -> str:
        return (
            f"batch {self.batch}: {1e3 * self.before:.3g} ms -> {1e3 * self.after:.3g} ms "
            f"({self.before / max(self.after, 1e-12):.2f} times as fast; medians of {self.rounds} "
            f"rounds, {self.threads} {'thread' if self.threads == 1 else 'threads'})"
        )


def footprint_of(program: Program) -> Footprint:
    """Count parameters, operations and activations.

    Example:
        >>> from fxprune.compiler import capture
        >>> found = footprint_of(capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),)))
        >>> found.parameters, found.flops, found.activations
        (8, 12, 2)
    """
    costs = costs_of(program)
    return Footprint(
        parameters=sum(p.numel() for p in program.parameters()),
        flops=costs.flops,
        activations=costs.activations,
        layers={row.node: row.flops for row in costs.rows},
        unknown=costs.unknown,
    )


def latency_of(
    after: Program, before: Program, *, batch: int = 1, seconds: float = 0.5
) -> Latency | None:
    """Measure forwards of two Programs in turns.

    Args:
        after: a Program.
        before: another one with the same inputs.
        batch: the size of every symbolic dimension.
        seconds: about how long to measure; a few rounds are run however short it is.

    Returns:
        Medians; None where no input can be drawn, or the drawn one does not run.
    """
    if not before.captured.inputs.drawable:
        return None
    # Forks have training flags of their own, over the same tensors.
    pair = fork(before).eval(), fork(after).eval()
    args, kwargs = example_of(before, batch=batch)
    try:
        with torch.no_grad():
            times = _time_in_turns(pair, args, kwargs, seconds)
    except (RuntimeError, ValueError, IndexError):
        return None
    medians = [statistics.median(taken) for taken in times]
    return Latency(batch, medians[0], medians[1], len(times[0]), torch.get_num_threads())


def _time_in_turns(
    models: Sequence[nn.Module], args: Any, kwargs: Any, seconds: float
) -> list[list[float]]:
    """Return how long each call took, by model, after one call that is not counted."""
    times: list[list[float]] = [[] for _ in models]
    for model in models:
        model(*args, **kwargs)
    end = time.perf_counter() + seconds
    while len(times[0]) < _ROUNDS or time.perf_counter() < end:
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            model(*args, **kwargs)
            taken.append(time.perf_counter() - start)
    return times
