"""Words for messages: what a misspelt name may have meant, and the names of dtypes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch

__all__ = ["did_you_mean", "dtype_name", "nearest"]


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name that is most like another one; None where none is like it.

    Args:
        name: what was written.
        known: what there is.
        cutoff: how like it must be, from 0 to 1; see `difflib.get_close_matches`.

    Example:
        >>> nearest("wieght", ["bias", "weight"]), nearest("scale", ["bias", "weight"])
        ('weight', None)
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the question whether the nearest known name is meant, or else another text.

    Example:
        >>> did_you_mean("wieght", ["bias", "weight"])
        "did you mean 'weight'?"
        >>> did_you_mean("scale", ["bias", "weight"], "there are bias, weight")
        'there are bias, weight'
    """
    near = nearest(name, known)
    return otherwise if near is None else f"did you mean {near!r}?"


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without torch's, as recipes and files have it.

    Example:
        >>> dtype_name(torch.float32)
        'float32'
    """
    return str(dtype).removeprefix("torch.")
