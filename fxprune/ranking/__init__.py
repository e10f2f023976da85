"""Exact ranking of scores, across parameters and processes, and masks from it.

- `digits`: The k-th smallest of many scores by their bit patterns: a histogram for each run of
  bits.
- `draws`: Uniform random numbers that are drawn again when they are read, and scores made of
  them.
- `kth`: Exact selection of the k smallest scores over many tensors, and the tie rule: equal ones
  go by index.
- `magnitudes`: Magnitudes compared and cut as integers: numpy does both several times faster than
  torch.
- `masks`: Rankings as masks: which of a parameter's units go, a chunk at a time.
- `processes`: Rankings of parameters spread over the processes of a group: who counts what, what
  a rank sends.
- `spread_masks`: Masks of parameters that are spread over processes: spread alike, or whole under
  FSDP2.
- `units`: Units of a parameter as the passes rank them: channels with their norms, and masks that
  meet masks.
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
