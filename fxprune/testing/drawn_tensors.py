"""Strategies for tensors with equal entries, where pruning has to choose."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st

__all__ = ["tied_tensors"]

_FINITE = (1.0, -1.0, 0.0, -0.0, 0.5, -0.5, 2.0, 3.0)
_NON_FINITE = (math.inf, -math.inf, math.nan)


@st.composite
def tied_tensors(
    draw: st.DrawFn,
    *,
    shape: Sequence[int] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    non_finite: bool = False,
) -> torch.Tensor:
    """Draw tensors of few different magnitudes, in both signs.

    Args:
        draw: given by hypothesis.
        shape: of the tensors; by default 1 to 3 dimensions of 1 to 4 are drawn.
        dtypes: floating dtypes to draw from.
        non_finite: whether infinities and NaN are among the entries.

    Example:
        >>> from hypothesis import find
        >>> find(tied_tensors(shape=(2, 2)), lambda t: t.unique().numel() == 2)
        tensor([[ 1.,  1.],
                [ 1., -1.]])
    """
    sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
    dims = draw(sizes) if shape is None else list(shape)
    pool = st.sampled_from([*_FINITE, *(_NON_FINITE if non_finite else ())])
    # Half of the tensors have three magnitudes at most, so that most entries are tied.
    few = draw(st.lists(pool, min_size=1, max_size=3)) if draw(st.booleans()) else None
    entries = pool if few is None else st.sampled_from(few)
    values = draw(st.lists(entries, min_size=math.prod(dims), max_size=math.prod(dims)))
    return torch.tensor(values, dtype=draw(st.sampled_from(list(dtypes)))).reshape(dims)
