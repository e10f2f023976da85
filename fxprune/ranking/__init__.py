"""Exact ranking of scores, across parameters and processes, and masks from it.

- `digits`: the k-th smallest of many scores by their bit patterns, and passes over chunks.
- `draws`: random numbers that are drawn again when they are read, and scores of them.
- `kth`: the k smallest scores over many tensors, as cuts; ties go by index.
- `magnitudes`: magnitudes compared and cut as integers.
- `masks`: which of a parameter's units a ranking prunes, a chunk at a time.
- `processes`: rankings over the processes of a group, and what each rank sends for them.
- `spread_masks`: masks of such parameters: spread alike, or whole under FSDP2.
- `units`: channels with their norms, and masks that meet masks.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from fxprune.ranking.draws import generator_of, random_scores
from fxprune.ranking.kth import check_amount, count_of, cut_group, name_in_errors, rank_scores
from fxprune.ranking.magnitudes import (
    INTEGERS,
    Scratch,
    bounds_of,
    can_scan,
    infinity_of,
    integers_of,
    keys_into,
    least_key,
    most_key,
    scan_keys,
    scan_magnitudes,
    zero_bits,
)
from fxprune.ranking.masks import PrunedChunks, pruned_of_group
from fxprune.ranking.processes import Peers, prepare_peers, rank_over, together
from fxprune.ranking.spread_masks import given_mask, pruned_mask, whole, whole_ones
from fxprune.ranking.units import ChannelScores, channel_norms, combined_mask, slice_sums
