"""Amounts: shares and counts of what is alive, as torch reads them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as torch_prune
from hypothesis import example, given
from hypothesis import strategies as st

from fxprune.errors import AmountError, AmountTypeError
from fxprune.ranking.kth import check_amount, count_of

NAN, INF = math.nan, math.inf
GOOD: list[Any] = [0, 1, 7, 0.0, 0.5, 1.0, np.int64(3), np.float32(0.25), Fraction(1, 3)]


@pytest.mark.parametrize("amount", GOOD, ids=repr)
def test_shares_and_counts_are_amounts(amount: Any):
    check_amount(amount)
    assert count_of(amount, 10, "entries") == torch_prune._compute_nparams_toprune(amount, 10)


@pytest.mark.parametrize("amount", [-1, 1.5, -0.1, NAN, INF, np.float64(2), Fraction(4, 3)])
def test_amounts_out_of_range_are_refused(amount: Any):
    with pytest.raises(AmountError, match=r"is out of range; give a share between 0\.0 and 1\.0"):
        check_amount(amount)


@pytest.mark.parametrize("amount", ["0.5", None, [1], 0.5j, True, False, torch.tensor(0.5)])
def test_what_is_no_number_is_no_amount(amount: Any):
    with pytest.raises(AmountTypeError, match=r"must be a float \(share\) or an int \(count\)"):
        count_of(amount, 10, "entries")


def test_more_than_is_alive_is_refused():
    assert count_of(10, 10, "channels") == 10
    with pytest.raises(AmountError) as caught:
        count_of(11, 10, "channels")
    assert str(caught.value) == (
        "amount=11 is more than the 10 channels that are alive; give 10 or less"
    )


@given(st.floats(0, 1), st.integers(0, 10**8))
@example(0.5, 5)
@example(0.5, 7)
def test_shares_are_rounded_as_torch_rounds_them(share: float, alive: int):
    assert count_of(share, alive, "entries") == torch_prune._compute_nparams_toprune(share, alive)
