"""The command line.

- `app`: The commands compile, checkpoint, passes, schema and demo; the other commands have files
  of their own.
- `certificates`: The command verify: hold a model to another one, or files to their certificate.
- `demo`: `fxprune demo` and its text: a small CNN on digits, pruned, finalized and checked.
- `inspect`: The command inspect: what fxprune sees of a model.
- `models`: How MODEL, `--weights`, `--input` and `--batch` are written, and what they give.
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
