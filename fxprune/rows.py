"""The arguments of a RegionalProgram: examples are made of the rows that it was captured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fxprune.inputs import InputSpec

__all__ = ["RowSpec"]


@dataclass(frozen=True)
class RowSpec(InputSpec):
    """An InputSpec that keeps the example.

    A loop that hangs on values may not end for drawn ones, so that no values are drawn.

    Args:
        rows: the leaves of the example.
    """

    rows: tuple[Any, ...] = ()

    def example(
        self,
        *,
        batch: int = 2,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return rows of the example: the first ones for seed 0, else a draw with replacement.

        Args:
            batch: how many rows.
            seed: seed of a private generator.
            dtype: the dtype for inputs that had the model's own floating dtype.
            device: where the tensors go.

        Returns:
            `(args, kwargs)`.
        """
        leaves = list(self.rows)
        for i, spec in enumerate(self.inputs):
            if spec.dtype is None:
                continue
            leaf = leaves[i]
            for dim in (at for at, size in enumerate(spec.shape) if isinstance(size, str)):
                leaf = leaf.index_select(dim, _chosen(leaf.shape[dim], batch, seed).to(leaf.device))
            follows = dtype is not None and spec.dtype == self.float_dtype
            leaves[i] = leaf.clone().to(device, dtype if follows else None)
        args, kwargs = self.nesting.unflatten(leaves)
        return tuple(args), dict(kwargs)


def _chosen(there: int, batch: int, seed: int) -> torch.Tensor:
    if seed == 0:
        return torch.arange(batch) % there
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, there, (batch,), generator=generator)
