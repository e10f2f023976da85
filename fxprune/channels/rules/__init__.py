"""The transfer rules: for each operator, how channels pass through it.

Importing this room puts every rule into the table of `fxprune.channels.flow`.

- `attention`: heads pass, and what is attended to is mixed place by place.
- `convolution`: plain, transposed, depthwise and grouped.
- `linear`: linear, bilinear, embedding and recurrent layers; what rules of layers share.
- `norms`: of batches, groups and layers.
- `parts`: parts of an axis, joined parts, indices, shuffles, rolls.
- `pointwise`: entry by entry: channels pass, operands are tied; and what is no tensor.
- `products`: products of two tensors.
- `reductions`: sums, means, softmax, sorting.
- `views`: the same factors in other axes.
- `windows`: windows, pooling, sampling.
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
