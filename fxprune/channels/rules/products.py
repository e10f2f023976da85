"""Transfer rules of products of two tensors, and where these are 0.

A product is 0 along what is 0 in one of them, wherever the others are.
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
    FollowError,
    Value,
    broadcast,
    broadcast_const,
    letters_of,
    nonzero,
    transfer,
    unknown,
)
from fxprune.channels.rules.attention import mean_of, sums_to_one
from fxprune.channels.rules.linear import with_numbers

_LIVE = "a live channel is summed over"


@transfer("matmul bmm mm mv")
def matmul(flow: Flow, node: Node) -> Value:
    """The last axis of one and the last but one of the other are summed over."""
    return _product(flow, node, node.args[0], node.args[1])


@transfer("baddbmm")
def baddbmm(flow: Flow, node: Node) -> Value:
    """A product added to a tensor."""
    product = _product(flow, node, node.args[1], node.args[2])
    terms = [unknown(flow.value(node.args[0]).axes), unknown(product.axes)]
    return unknown(broadcast(flow, node, terms)[0])


# The second is what transformers puts into graphs in the first one's place.
@transfer("_grouped_mm grouped_mm_fallback")
def grouped_mm(flow: Flow, node: Node) -> Value:
    """Runs of rows, each times a matrix of its own, as experts are: all matrices stay."""
    rows, matrices = flow.value(node.args[0]), flow.value(node.args[1])
    if (len(rows.axes), len(matrices.axes)) != (2, 3):
        raise FollowError("it multiplies no rows by several matrices")
    flow.pin(matrices.axes[0], "rows are dealt out to all of them", node)
    return unknown(_product(flow, node, node.args[0], node.args[1]).axes[1:])


def _product(flow: Flow, node: Node, first: object, second: object) -> Value:
    """Return the product of two nodes' values: the first one's last axis is summed over."""
    left, right = flow.value(first), flow.value(second)
    if len(left.axes) < 2 or not right.axes:
        raise FollowError("it multiplies a vector")
    summed = -min(len(right.axes), 2)  # which axis of the second one
    flow.tie(left.axes[-1], right.axes[summed], node)
    a = flow.flat(left, len(left.axes) - 1, node)
    b = flow.flat(right, len(right.axes) + summed, node)
    zero = (a.const == 0) | (b.const == 0)
    for part, axis in ((first, -1), (second, summed)):
        zero = zero | _unread(flow, part, axis)
    for part in (a, b):
        _consume(flow, node, part, zero)
    if summed == -1:
        return _times_vector(left)
    batch, _ = broadcast(flow, node, [unknown(left.axes[:-2]), unknown(right.axes[:-2])])
    axes = (*batch, left.axes[-2], right.axes[-1])
    if bool(zero.all()):
        return Value(axes, np.zeros((1,) * sum(map(len, axes))))
    ranks = len(left.axes), len(right.axes)
    orders = [*range(ranks[0] - 1), None], [*range(ranks[1] - 2), None, ranks[1] - 1]
    const = zeros_of(flow, axes, (first, second), orders)
    if sums_to_one(flow, first):
        const = np.where(const == 0, const, mean_of(axes, right).const)
    return Value(axes, const)


def _times_vector(value: Value) -> Value:
    """Return what a vector makes of a value's rows: 0 where all of a row is."""
    first = value.first_factor(len(value.axes) - 1)
    rows = (value.const == 0).all(axis=tuple(range(first, value.const.ndim)))
    return Value(value.axes[:-1], np.where(rows, 0.0, np.nan))


def _consume(flow: Flow, node: Node, part: Flat, zero: Bools) -> None:
    """Let the channels of an axis that is summed over stay, but where the product is 0."""
    if part.atoms is not None:
        flow.atoms.visit(part.atoms)
        flow.atoms.pin(part.atoms[~np.broadcast_to(zero, (part.size,))], _LIVE, node)


def _unread(flow: Flow, part: object, axis: int) -> Bools:
    """Return where a stored operand is all 0 along an axis."""
    weight = flow.concrete(part)
    if weight is None:
        return np.zeros(1, dtype=np.bool_)
    places = tuple(d for d in range(weight.dim()) if d != weight.dim() + axis)
    return ~nonzero(weight).any(axis=places, keepdims=True).reshape(-1)


@transfer("einsum")
def einsum(flow: Flow, node: Node) -> Value:
    """Axes of one letter are tied; letters that the result lacks are summed over."""
    reads = list(node.args[1]) if isinstance(node.args[1], (list, tuple)) else []
    values = [flow.value(read) for read in reads]
    if str(node.args[0]).count(",") + 1 != len(reads):
        raise FollowError("its operands are no list")
    terms, output = letters_of(str(node.args[0]), [len(value.axes) for value in values])
    if any(len(set(t)) != len(v.axes) for t, v in zip(terms, values, strict=True)):
        raise FollowError("its axes have no letters of their own")
    axes: dict[str, Axis] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, axis in zip(term, value.axes, strict=True):
            axes[letter] = flow.tie(axes[letter], axis, node) if letter in axes else axis
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
        _consume(flow, node, part, zero)


def zeros_of(
    flow: Flow,
    axes: Sequence[Axis],
    operands: Sequence[object],
    orders: Sequence[Sequence[int | None]],
) -> Array:
    """Return 0 where a product is, NaN elsewhere.

    `orders` says, for each operand, which of its axes each of the product's last axes is; None for
    none of them. Axes that are not named are summed over.
    """
    zero = np.zeros((1,) * sum(map(len, axes)), dtype=np.bool_)
    for operand, order in zip(operands, orders, strict=True):
        value = _zeros_in_order(with_numbers(flow, operand), order)
        zero = zero | (broadcast_const(value, axes) == 0)
    return np.where(zero, 0.0, np.nan)


def _zeros_in_order(value: Value, order: Sequence[int | None]) -> Value:
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
