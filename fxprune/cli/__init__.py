"""The command line.

- `app`: The command line: compile and demo; the other commands are in files of their own.
- `certificates`: The command verify: hold a model to another one.
- `demo`: `fxprune demo`: a small CNN on scikit-learn's digits, pruned, finalized and checked.
- `inspect`: The command inspect: what fxprune sees of a model.
- `models`: `MODEL` and `--weights`: a model from a factory, its weights from a file, and whether
  it runs.
- `output`: What commands print: results to stdout, progress and errors to stderr.
- `plans`: The commands plan and explain: what a recipe would do, and why.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from typing import TYPE_CHECKING

from fxprune.support import lazy_names

if TYPE_CHECKING:
    from fxprune.cli.app import main

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "app": "main",
    },
)
