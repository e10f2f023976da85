"""Nests of outputs: they come apart and together again, and pickle."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from fxprune.program.inputs import Nesting


class Pair(NamedTuple):
    """A kind of tuple of its own."""

    x: Any
    y: Any


NESTS = st.recursive(
    st.none() | st.integers(),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inside, max_size=3)
        | st.builds(Pair, inside, inside)
    ),
    max_leaves=8,
)


@given(NESTS)
def test_leaves_go_back_to_their_places(nest: Any):
    nesting = Nesting(nest)
    assert nesting.unflatten(pytree.tree_leaves(nest)) == nest
    assert nesting.tree.num_leaves == len(pytree.tree_leaves(nest))


@given(NESTS)
def test_a_nesting_survives_pickle(nest: Any):
    nesting = pickle.loads(pickle.dumps(Nesting(nest)))
    assert nesting.skeleton == Nesting(nest).skeleton
    assert nesting.unflatten(pytree.tree_leaves(nest)) == nest


def test_kinds_of_containers_are_kept():
    nest = OrderedDict(b=Pair(1, [2]), a=(3,))
    made = pickle.loads(pickle.dumps(Nesting(nest))).unflatten("xyz")
    assert made == OrderedDict(b=Pair("x", ["y"]), a=("z",))
    assert type(made) is OrderedDict
    assert list(made) == ["b", "a"]
    assert type(made["b"]) is Pair


def test_it_keeps_numbers_in_the_place_of_leaves():
    nesting = Nesting({"a": object(), "b": [object()]})
    assert nesting.skeleton == {"a": 0, "b": [1]}
    assert copy.deepcopy(nesting) is nesting


def test_leaves_must_be_as_many():
    with pytest.raises(ValueError, match="2"):
        Nesting([1, 2]).unflatten([1])
