"""The transfer rules: for each operator, how channels pass through it.

Importing this room puts every rule into the table of `fxprune.channels.flow`.

- `attention`: Transfer rules of attention: heads pass, and what is attended to is mixed place by
  place.
- `convolution`: Transfer rules of convolutions: plain, transposed, depthwise and grouped.
- `linear`: Transfer rules of linear, bilinear and embedding layers.
- `norms`: Transfer rules of norms.
- `parts`: Transfer rules of operators that take parts of an axis: splits, slices, indices.
- `pointwise`: Transfer rules of operators that work entry by entry: channels pass, operands are
  tied.
- `products`: Transfer rules of products of two tensors.
- `reductions`: Transfer rules of reductions and softmax.
- `views`: Transfer rules of views and permutations: the same factors in other axes.
- `windows`: Transfer rules of windows: places are laid out in rows, or added up again; and of
  sampling.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from fxprune.channels.rules import (
    attention,
    convolution,
    linear,
    norms,
    parts,
    pointwise,
    products,
    reductions,
    views,
    windows,
)
