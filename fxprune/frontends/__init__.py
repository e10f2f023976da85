"""The ways in: a model becomes a Program.

- `adopting`: What a reader must know of a model that came with torch.nn.utils.prune's masks.
- `batch`: Which dimensions of the example are the batch, and how export is told.
- `batch_sizes`: For which batch sizes an exported graph is right.
- `dispatch`: The ways into a Program: which front end takes a model.
- `exported`: What torch.export gave, as a Program: its graph, its names, its sizes.
- `importing`: From a graph of torch.export to a graph of a Program: flat, plain meta, one read a
  tensor.
- `lowering`: calls of torch's functions and methods, as symbolic_trace records them, to aten
  operators.
- `merging`: Put captured regions into one RegionalProgram: their graphs read one tree by full
  names.
- `modes`: Live training flags (batch norm's, dropout's): one graph for both modes where possible,
  else one each.
- `module`: Capture: from an nn.Module to a Program, through torch.export.
- `regions`: Find the largest submodules that torch.export takes, where it does not take the whole
  model.
- `traced`: Graphs of torch.fx.symbolic_trace as Programs, without an example.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from fxprune.frontends.adopting import adoption_notes, joined_masks
from fxprune.frontends.dispatch import enter
