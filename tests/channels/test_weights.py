"""Looks at stored weights against brute force: every weight by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.channels.weights import Weights, nonzero

shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2))


@pytest.mark.smoke
@given(shapes, st.data())
def test_rows_and_channels_are_those_of_each_weight(shape: tuple[int, ...], data: st.DataObject):
    rows, channels, inner = shape
    values = st.sampled_from([0.0, 0.0, -0.0, 1.0, float("nan")])
    drawn = data.draw(st.lists(values, min_size=rows * channels * inner, max_size=None))
    weight = torch.tensor(drawn[: rows * channels * inner]).view(shape)
    some_rows = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    some = np.array(data.draw(st.lists(st.booleans(), min_size=channels, max_size=channels)))
    reads = {
        (row, channel)
        for row, channel, at in np.ndindex(*shape)
        if float(weight[row, channel, at]) != 0
    }
    found = Weights(weight)
    assert set(np.flatnonzero(found.full)) == {row for row, _ in reads}
    assert set(np.flatnonzero(found.read)) == {channel for _, channel in reads}
    assert set(np.flatnonzero(found.read_by(some_rows))) == {c for r, c in reads if some_rows[r]}
    assert set(np.flatnonzero(found.readers(some))) == {r for r, c in reads if some[c]}


def test_one_number_in_all_places():
    for number in (0.0, 2.0):
        found = Weights(torch.full((1, 1), number).expand(3, 2))
        assert found.full.tolist() == [bool(number)] * 3
        assert found.read.tolist() == [bool(number)] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_any_dtype_has_weights(dtype: torch.dtype):
    weight = torch.tensor([0.0, -0.0, 1e-4, 3.0]).to(dtype)
    assert nonzero(weight).tolist() == [False, False, True, True]
