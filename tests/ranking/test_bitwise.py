"""Magnitudes as integers: the same comparisons and products as torch's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.ranking.magnitudes import (
    Scratch,
    bounds_of,
    infinity_of,
    integers_of,
    keys_into,
    least_key,
    most_key,
    scan_keys,
    zero_bits,
)
from fxprune.support.equality import same_bits

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
magnitudes = st.floats(0, allow_nan=False)


def valued(key: int, dtype: torch.dtype) -> float:
    return float(torch.tensor(key, dtype=INTEGERS[dtype.itemsize]).view(dtype))


def drawn(seed: int, dtype: torch.dtype) -> Tensor:
    """Numbers of any bits."""
    top = 2 ** (8 * dtype.itemsize - 1)
    generator = np.random.default_rng(seed)
    bits = generator.integers(-top, top, 200, integers_of(dtype))
    return torch.from_numpy(bits).view(dtype)


def bits_of(values: Tensor) -> np.ndarray:
    return values.view(INTEGERS[values.element_size()]).numpy()


@each_dtype
@given(bound=magnitudes)
def test_keys_at_a_bound_of_another_dtype_are_the_nearest_on_its_side(
    dtype: torch.dtype, bound: float
):
    least, most = least_key(bound, dtype), most_key(bound, dtype)
    assert valued(least, dtype) >= bound
    assert least == 0 or valued(least - 1, dtype) < bound
    assert valued(most, dtype) <= bound
    assert most == infinity_of(dtype) or valued(most + 1, dtype) > bound
    assert bounds_of(bound, dtype) == (least - 1, most)


@each_dtype
def test_nan_is_over_all_and_at_itself(dtype: torch.dtype):
    values = drawn(0, dtype)
    values[:50] = math.nan
    keys = keys_into(bits_of(values), Scratch())
    under, upto = bounds_of(math.nan, dtype)
    assert np.array_equal(keys > under, values.isnan().numpy())
    assert keys.max() <= upto


@each_dtype
@given(seed=st.integers(0, 2**16), bounds=st.tuples(magnitudes, magnitudes), masked=st.booleans())
def test_a_scan_counts_and_collects_as_torch_does(
    dtype: torch.dtype, seed: int, bounds: tuple[float, float], masked: bool
):
    values = drawn(seed, dtype)
    low, high = sorted(bounds)
    living = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.5
    kept = living if masked else torch.ones(200, dtype=torch.bool)
    room = Scratch()
    first, last = least_key(low, dtype), most_key(high, dtype)
    flags = living.numpy() if masked else None
    under, inside = scan_keys(keys_into(bits_of(values), room), first, last, flags, room)
    scores = values.abs().double()
    assert under == int((kept & (scores < low)).sum())
    wanted = values.abs()[kept & (scores >= low) & (scores <= high)]
    assert same_bits(torch.from_numpy(inside).view(dtype), wanted)


@each_dtype
@pytest.mark.parametrize("clean", [False, True])
@given(seed=st.integers(0, 2**16), level=magnitudes)
def test_zeroing_bits_is_a_product_with_a_mask(
    dtype: torch.dtype, clean: bool, seed: int, level: float
):
    values = drawn(seed, dtype)
    values[~values.isfinite()] = 1.0
    key = least_key(level, dtype)
    mask = (values.abs().double() >= level).to(dtype)
    wanted = values * mask
    if clean:
        wanted.masked_fill_(mask == 0, 0)
    bits = bits_of(values)
    zero_bits(bits, keys_into(bits, Scratch()), key, clean=clean)
    assert same_bits(values, wanted)
