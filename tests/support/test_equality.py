"""Bit equality: what `==` calls equal and is not, and the other way round."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.support.equality import same_bits

NAN, INF = float("nan"), float("inf")
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]
OTHERS = [torch.bool, torch.uint8, torch.int32, torch.int64]


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_compared_by_their_bits(dtype: torch.dtype):
    values = torch.tensor([NAN, INF, -INF, 0.0, 1.0], dtype=dtype)
    assert same_bits(values, values.clone())
    assert not same_bits(values, -values)
    assert not same_bits(torch.zeros(2, dtype=dtype), -torch.zeros(2, dtype=dtype))


def test_two_different_nans_differ():
    quiet = torch.tensor([0x7FC00000], dtype=torch.int32).view(torch.float32)
    other = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert quiet.isnan().all()
    assert other.isnan().all()
    assert same_bits(quiet, quiet.clone())
    assert not same_bits(quiet, other)


@pytest.mark.parametrize("dtype", COMPLEX)
def test_complex_numbers_are_compared_part_by_part(dtype: torch.dtype):
    numbers = torch.tensor([complex(NAN, 0.0), complex(1.0, 2.0)], dtype=dtype)
    assert same_bits(numbers, numbers.clone())
    assert not same_bits(numbers, numbers.conj())
    assert same_bits(numbers, numbers.conj().resolve_conj().conj())


@pytest.mark.parametrize("dtype", OTHERS)
def test_other_dtypes_are_compared_by_value(dtype: torch.dtype):
    values = torch.tensor([0, 1, 1], dtype=dtype)
    assert same_bits(values, values.clone())
    assert not same_bits(values, torch.tensor([0, 1, 0], dtype=dtype))


def test_shape_and_dtype_count():
    ones = torch.ones(2, 3)
    assert not same_bits(ones, ones.T)
    assert not same_bits(ones, ones.double())
    assert not same_bits(ones, torch.ones(2, 3, 1))
    assert not same_bits(torch.zeros(2, dtype=torch.int32), torch.zeros(2))
    assert not same_bits(torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16))


def test_memory_format_and_gradients_do_not():
    base = torch.arange(6.0).view(2, 3)
    strided = torch.arange(6.0).view(2, 3).T.contiguous().T
    assert not strided.is_contiguous()
    assert same_bits(base, strided)
    assert same_bits(base, base.clone().requires_grad_())
    assert same_bits(torch.empty(0), torch.empty(0))


@given(st.lists(st.floats(width=32), max_size=5), st.lists(st.floats(width=32), max_size=5))
def test_same_bits_are_the_same_bytes(a: list[float], b: list[float]):
    first, second = torch.tensor(a), torch.tensor(b)

    def raw(x: Tensor) -> bytes:
        return x.numpy().tobytes()

    assert same_bits(first, second) == (raw(first) == raw(second))
    assert same_bits(first, first.clone())
