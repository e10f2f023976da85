"""Pickles of tensors, read without running what they name."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import _weights_only_unpickler

from fxprune.quiet import alone

__all__ = ["unpickled"]

_LONGEST = 300  # characters of a message


def unpickled(source: Path | IO[bytes], also: Sequence[Any] = ()) -> Any:
    """Return what a pickle holds, its tensors on the CPU.

    Args:
        source: what torch.save wrote, or torch of long ago.
        also: what it may name beside torch's own, see `torch.serialization.safe_globals`.

    Raises:
        Exception: of many kinds, where it holds other things than tensors and plain values.
    """
    with (
        alone(),
        warnings.catch_warnings(),
        torch.serialization.safe_globals(list(also)),
        _short_messages(),
    ):
        # Of a TorchScript archive torch goes on to refuse it.
        warnings.simplefilter("ignore")
        return torch.load(source, map_location="cpu", weights_only=True)


class _ShortError(pickle.UnpicklingError):
    """Tells the beginning alone of a message, which may repeat what the file has."""

    def __str__(self) -> str:
        return super().__str__()[:_LONGEST]


@contextmanager
def _short_messages() -> Generator[None]:
    """Keep torch from looking through long messages with regular expressions that backtrack."""
    module: Any = _weights_only_unpickler
    before = getattr(module, "UnpicklingError", None)
    module.UnpicklingError = _ShortError
    try:
        yield
    finally:
        module.UnpicklingError = before
