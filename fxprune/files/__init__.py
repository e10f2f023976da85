"""The ways out and back in: .fxp, .pt2, .onnx, .py, safetensors, and masks of other tools.

- `formats`: A writer for each format of export: .pt2, .onnx, .safetensors, .py. A new format
  starts here.
- `fxp`: All of a Program in one safetensors file, which is read without running anything in it.
- `fxp_document`: What the metadata of a .fxp says, checked key by key: the types, the limits,
  nothing unknown.
- `fxp_graph`: Graphs of a .fxp: nodes as plain data, and checks of all that ends up in generated
  code.
- `fxp_values`: Constants of graphs as JSON and back: what is plain stays plain, the rest has a
  tag.
- `masks`: Masks in files, of other tools too: read without running anything, matched by name,
  written.
- `pt2`: torch.export's .pt2 files, read without running what is in them.
- `source`: A Program as readable Python source that needs torch alone, and its weights beside it.
- `writers`: `export`, chosen by suffix, and weights read back: whole or not at all, nothing run.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from fxprune.files.formats import check_format
from fxprune.files.fxp import load, save
from fxprune.files.masks import fit_masks, read_masks, write_masks
from fxprune.files.pt2 import load_pt2
from fxprune.files.writers import check_writable, export, read_weights
