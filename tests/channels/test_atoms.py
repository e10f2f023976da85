"""Atoms, views and joint axes against brute force: every index by itself."""

from __future__ import annotations

import networkx as nx
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.channels.atoms import LIVE, Atoms, WeightRead
from fxprune.channels.axes import reshape, tie_axes
from fxprune.channels.removal import removal_of
from fxprune.channels.values import Factor, Value, unknown
from fxprune.channels.weights import Weights

pairs = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)
# Of an axis of size 1 the one channel always stays, so that it need not be followed.
sizes = st.lists(st.sampled_from([2, 2, 3]), min_size=1, max_size=4)


@given(pairs)
def test_components_are_those_of_a_graph(ties: list[tuple[int, int]]):
    atoms = Atoms()
    ids = atoms.fresh(20)
    for a, b in ties:
        atoms.tie(ids[[a]], ids[[b]])
    graph = nx.Graph(ties)
    graph.add_nodes_from(range(20))
    expected = {each: min(part) for part in nx.connected_components(graph) for each in part}
    assert atoms.components().tolist() == [expected[each] for each in range(20)]


def cells(value: Value, labels: np.ndarray) -> np.ndarray:
    """Return, for each entry in row-major order, the components that it belongs to, as a set."""
    shape = [factor.size for factor in value.factors]
    found = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        found[index] = frozenset(
            int(labels[factor.atoms[i]])
            for i, factor in zip(index, value.factors, strict=True)
            if factor.atoms is not None
        )
    return found.reshape(-1)


@given(sizes, st.randoms(use_true_random=False), st.integers(0, 3))
def test_a_view_loses_no_channel(parts: list[int], random: np.random.Generator, at: int):
    total = int(np.prod(parts))
    shape = sorted(parts, key=lambda _: random.random())
    atoms = Atoms()
    axes = [
        (Factor(n, atoms.fresh(n) if i == at % len(parts) else None),) for i, n in enumerate(parts)
    ]
    before = unknown(axes)
    after = reshape(atoms, before, shape, lambda axis, count: lambda sizes: at % len(sizes))
    if after is None:
        return
    assert after.shape == tuple(shape)
    labels = atoms.components()
    old, new = cells(before, labels), cells(after, labels)
    assert len(new) == total
    # An entry that goes with a channel goes with the same one in the view, unless it stays whole.
    assert all(
        a == b or len(after.factors) == 0 or a <= _all(labels)
        for a, b in zip(old, new, strict=True)
    )
    gone = {label for each in old for label in each}
    for label in gone:
        kept_old = [label not in each for each in old]
        kept_new = [label not in each for each in new]
        assert kept_old == kept_new


def _all(labels: np.ndarray) -> frozenset[int]:
    return frozenset(int(label) for label in labels)


@given(sizes, sizes)
def test_joint_axes_tie_index_by_index(left: list[int], right: list[int]):
    atoms = Atoms()
    a = tuple(Factor(n, atoms.fresh(n)) if i == 0 else Factor(n) for i, n in enumerate(left))
    size = int(np.prod(left))
    b = (Factor(size, atoms.fresh(size)),)
    joined = tie_axes(atoms, a, b, None)  # pyright: ignore[reportArgumentType]
    assert joined is not None
    labels = atoms.components()
    first, second = cells(unknown([a]), labels), cells(unknown([b]), labels)
    pinned = {int(labels[each]) for pin in atoms.pins for each in pin.atoms}
    for one, other in zip(first, second, strict=True):
        assert one == other or (one | other) & pinned
    del right


def test_what_a_dead_row_reads_is_dead():
    atoms = Atoms()
    channels, rows, outputs = atoms.fresh(3), atoms.fresh(2), atoms.fresh(2)
    atoms.tie(rows, outputs)
    atoms.pin(outputs[:1], "it is an output", None)
    weights = Weights(torch.tensor([[True, False, False], [True, True, False]]))
    everything = np.ones(3, dtype=bool)
    atoms.reads.append(WeightRead(channels, everything, rows, weights, None))  # pyright: ignore
    values = [unknown([(Factor(len(ids), ids),)]) for ids in (channels, rows, outputs)]
    removal = removal_of(atoms, values, [])
    assert removal.kept(channels).tolist() == [True, False, False]
    assert removal.kept(rows).tolist() == [True, False]
    assert [pin.reason for pin, _ in removal.reasons(channels)] == [LIVE]


def test_an_axis_keeps_one_channel_and_what_that_reads():
    atoms = Atoms()
    channels, rows = atoms.fresh(2), atoms.fresh(2)
    weights = Weights(torch.tensor([[False, True], [False, False]]))
    atoms.reads.append(WeightRead(channels, np.ones(2, dtype=bool), rows, weights, None))  # pyright: ignore
    values = [unknown([(Factor(2, ids),)]) for ids in (channels, rows)]
    removal = removal_of(atoms, values, [])
    assert removal.kept(rows).sum() == 1
    assert removal.kept(channels).sum() >= 1
    assert not (removal.kept(rows)[0] and not removal.kept(channels)[1])


def test_counts_are_rounded_up_over_ties():
    atoms = Atoms()
    first, second = atoms.fresh(8), atoms.fresh(8)
    atoms.tie(first, second)
    atoms.pin(first[:3], "it stays", None)
    values = [unknown([(Factor(8, ids),)]) for ids in (first, second)]
    removal = removal_of(atoms, values, [], round_to=4)
    assert removal.kept(first).sum() == removal.kept(second).sum() == 4
