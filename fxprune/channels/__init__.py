"""How channels flow through a graph: which go together, which are dead, what a cut changes.

- `after`: after a shrink: an optimizer's state carried over, the new shapes as data.
- `atoms`: one for each channel of each axis; what ties them, and what pins them.
- `axes`: axes joined, split and viewed in other shapes; equations of einsum.
- `cost`: what a forward costs: FLOPs of each operator, activations, latency.
- `coupling`: channels that can only be cut together, in layers, and their scores.
- `flow`: a value for each node, by a transfer rule per operator; what no rule knows is pinned.
- `meeting`: operands that consume index by index, and operators that sum over channels.
- `removal`: which atoms go: those of components that nothing pins, but never a whole axis.
- `surgery`: the cut itself, and its record.
- `values`: axes as products of factors, and what may be cut of each.
- `weights`: which rows of stored weights are not 0, and which channels are read at all.
- `rules/`: the transfer rules, a file a family of operators.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from fxprune.channels.after import apply_delta, shape_delta, transplant
from fxprune.channels.atoms import KERNEL, Atoms
from fxprune.channels.axes import (
    Flat,
    SplitChoice,
    letters_of,
    loosen,
    reshape,
    split_factor,
    tie_axes,
)
from fxprune.channels.cost import Latency, costs_of, footprint_of, latency_of
from fxprune.channels.coupling import (
    CoupledLayer,
    CoupledScores,
    Coupling,
    UnitPlace,
    living_units,
    places_of,
    scores_of_units,
)
from fxprune.channels.flow import COUNTS, Flow, FollowError, StoredValues, parts_of, transfer
from fxprune.channels.meeting import (
    Sink,
    broadcast,
    broadcast_const,
    consume,
    row_constants,
    sums_of,
)
from fxprune.channels.removal import Removal, removal_of
from fxprune.channels.surgery import Surgery, record_of_cut, shift_note, train_notes
from fxprune.channels.values import (
    OPEN,
    Array,
    Axis,
    Bools,
    Factor,
    Ids,
    Value,
    axis_size,
    known_along,
    opaque,
    unknown,
    widen,
)
from fxprune.channels.weights import Weights, nonzero
