"""Pruning of checkpoints as files, in bounded memory.

- `checkpoint`: Prune a checkpoint that need not fit in memory: from safetensors files to
  safetensors files.
- `rules`: The rules of a recipe on a checkpoint: each adds factors to the masks of the tensors it
  takes.
- `scores`: Scores of a checkpoint's tensors, read from the file when they are asked for.
- `source`: Checkpoints on disk: a safetensors file, or an index and its shards, with their
  headers checked.
- `target`: Where a pruned checkpoint goes: all files are written aside and moved when they are
  complete.
- `weights`: A tensor of a checkpoint, read chunk by chunk, and what rules have made of its mask.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from fxprune.checkpoint.checkpoint import prune_checkpoint
