"""Transfer rules of products of two tensors.

Where products of tensors are 0: along what is 0 in one of them, wherever the others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune.channels import (
    Array,
    Axis,
    Bools,
    Factor,
    Flat,
    Flow,
    Value,
    broadcast,
    letters_of,
    nonzero,
    spread,
    transfer,
    unknown,
)
from fxprune.channels.rules.attention import mixed, sums_to_one
from fxprune.channels.rules.linear import with_numbers
from fxprune.rewrite import Refusal

_LIVE = "a live channel is summed over"


@transfer("matmul bmm mm mv")
def product(flow: Flow, node: Node) -> Value | Refusal:
    """The last axis of one and the last but one of the other are summed over."""
    return multiplied(flow, node, node.args[0], node.args[1])


@transfer("baddbmm")
def product_and_sum(flow: Flow, node: Node) -> Value | Refusal:
    """A product added to a tensor."""
    found = multiplied(flow, node, node.args[1], node.args[2])
    if isinstance(found, Refusal):
        return found
    joined = broadcast(flow, node, [unknown(flow.value(node.args[0]).axes), unknown(found.axes)])
    return joined if isinstance(joined, Refusal) else unknown(joined[0])


# The second is what transformers puts into graphs in the first one's place.
@transfer("_grouped_mm grouped_mm_fallback")
def grouped(flow: Flow, node: Node) -> Value | Refusal:
    """Runs of rows, each times a matrix of its own, as experts are: all matrices stay."""
    rows, matrices = flow.value(node.args[0]), flow.value(node.args[1])
    if (len(rows.axes), len(matrices.axes)) != (2, 3):
        return Refusal("it multiplies no rows by several matrices", node)
    flow.pin(matrices.axes[0], "rows are dealt out to all of them", node)
    found = multiplied(flow, node, node.args[0], node.args[1])
    return found if isinstance(found, Refusal) else unknown(found.axes[1:])


def multiplied(flow: Flow, node: Node, first: object, second: object) -> Value | Refusal:
    """Return the product of two nodes' values.

    Args:
        flow: whose nodes they are.
        node: the operator.
        first: the node whose last axis is summed over.
        second: the node whose last but one axis is.
    """
    left, right = flow.value(first), flow.value(second)
    if len(left.axes) < 2 or not right.axes:
        return Refusal("it multiplies a vector", node)
    summed = -min(len(right.axes), 2)  # which axis of the second one
    if flow.tie(left.axes[-1], right.axes[summed], node) is None:
        return Refusal("its operands' axes are made of different parts", node)
    a = flow.flat(left, len(left.axes) - 1, node)
    b = flow.flat(right, len(right.axes) + summed, node)
    zero = (a.const == 0) | (b.const == 0)
    for part, axis in ((first, -1), (second, summed)):
        zero = zero | _unread(flow, part, axis)
    for part in (a, b):
        _meet(flow, node, part, zero)
    if summed == -1:
        return _without_last(left)
    batch = broadcast(flow, node, [unknown(left.axes[:-2]), unknown(right.axes[:-2])])
    if isinstance(batch, Refusal):
        return batch
    axes = (*batch[0], left.axes[-2], right.axes[-1])
    if bool(zero.all()):
        return Value(axes, np.zeros((1,) * sum(map(len, axes))))
    ranks = len(left.axes), len(right.axes)
    orders = [*range(ranks[0] - 1), None], [*range(ranks[1] - 2), None, ranks[1] - 1]
    const = zeros_of(flow, axes, (first, second), orders)
    if sums_to_one(flow, first):
        const = np.where(const == 0, const, mixed(axes, right).const)
    return Value(axes, const)


def _without_last(value: Value) -> Value:
    """Return what a vector makes of a value's rows: 0 where all of a row is."""
    first = value.first_factor(len(value.axes) - 1)
    rows = (value.const == 0).all(axis=tuple(range(first, value.const.ndim)))
    return Value(value.axes[:-1], np.where(rows, 0.0, np.nan))


def _meet(flow: Flow, node: Node, part: Flat, zero: Bools) -> None:
    if part.atoms is not None:
        flow.atoms.met(part.atoms)
        flow.atoms.pin(part.atoms[~np.broadcast_to(zero, (part.size,))], _LIVE, node)


def _unread(flow: Flow, part: object, axis: int) -> Bools:
    """Return where a stored operand is all 0 along an axis."""
    weight = flow.concrete(part)
    if weight is None:
        return np.zeros(1, dtype=np.bool_)
    places = tuple(d for d in range(weight.dim()) if d != weight.dim() + axis)
    return ~nonzero(weight).any(axis=places, keepdims=True).reshape(-1)


@transfer("einsum")
def summed(flow: Flow, node: Node) -> Value | Refusal:
    """Axes of one letter are tied; letters that the result lacks are summed over."""
    reads = list(node.args[1]) if isinstance(node.args[1], (list, tuple)) else []
    values = [flow.value(read) for read in reads]
    if str(node.args[0]).count(",") + 1 != len(reads):
        return Refusal("its operands are no list", node)
    terms, output = letters_of(str(node.args[0]), [len(value.axes) for value in values])
    if any(len(set(t)) != len(v.axes) for t, v in zip(terms, values, strict=True)):
        return Refusal("its axes have no letters of their own", node)
    axes: dict[str, Axis] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, axis in zip(term, value.axes, strict=True):
            tied = flow.tie(axes[letter], axis, node) if letter in axes else axis
            if tied is None:
                return Refusal("its operands' axes are made of different parts", node)
            axes[letter] = tied
    for letter in set("".join(terms)) - set(output):
        _sum_letter(flow, node, letter, list(zip(terms, reads, strict=True)))
    found = tuple(axes[letter] for letter in output)
    orders = [[term.index(c) if c in term else None for c in output] for term in terms]
    return Value(found, zeros_of(flow, found, reads, orders))


def _sum_letter(flow: Flow, node: Node, letter: str, terms: list[tuple[str, Any]]) -> None:
    """Let the channels of a letter stay that are not 0 in any of the operands."""
    have = [(term.index(letter), read) for term, read in terms if letter in term]
    parts = [flow.flat(flow.value(read), at, node) for at, read in have]
    zero = np.zeros(1, dtype=np.bool_)
    for (at, read), part in zip(have, parts, strict=True):
        zero = zero | (part.const == 0) | _unread(flow, read, at - len(flow.value(read).axes))
    for part in parts:
        _meet(flow, node, part, zero)


def zeros_of(
    flow: Flow,
    axes: Sequence[Axis],
    operands: Sequence[object],
    orders: Sequence[Sequence[int | None]],
) -> Array:
    """Return 0 where a product is, NaN elsewhere.

    Args:
        flow: whose nodes they are.
        axes: those of the product.
        operands: the nodes that are multiplied.
        orders: for each of them, which of its axes each of the product's last axes is; None for
            none of them. Axes that are not named are summed over.
    """
    zero = np.zeros((1,) * sum(map(len, axes)), dtype=np.bool_)
    for operand, order in zip(operands, orders, strict=True):
        zero = zero | (spread(_collapsed(with_numbers(flow, operand), order), axes) == 0)
    return np.where(zero, 0.0, np.nan)


def _collapsed(value: Value, order: Sequence[int | None]) -> Value:
    """Return a value with its axes in an order, 0 where it is along all of those that go."""
    dims = {
        at: range(value.first_factor(at), value.first_factor(at) + len(axis))
        for at, axis in enumerate(value.axes)
    }
    gone = [dim for at, own in dims.items() if at not in order for dim in own]
    zero = (value.const == 0).all(axis=tuple(gone), keepdims=True)
    kept = [dim for at in order if at is not None for dim in dims[at]]
    sizes = [
        size
        for at in order
        for size in ([1] if at is None else [zero.shape[dim] for dim in dims[at]])
    ]
    axes = tuple((Factor(1),) if at is None else value.axes[at] for at in order)
    ordered = zero.transpose([*kept, *gone]).reshape(sizes)
    return Value(axes, np.where(ordered, 0.0, np.nan))
