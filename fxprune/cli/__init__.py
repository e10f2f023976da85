"""The command line.

- `app`: The commands: what each can be given, and what is checked before torch is loaded.
- `certificates`: The command verify: hold a model to another one, or files to their certificate.
- `compiling`: The command compile: what it prints.
- `demo`: `fxprune demo` and its text: a small CNN on digits, pruned, finalized and checked.
- `inspect`: The command inspect: what fxprune sees of a model.
- `models`: A model from MODEL, its weights and its inputs from `--weights` and `--input`.
- `output`: What commands print: results to stdout, progress and errors to stderr.
- `plans`: The commands plan and explain: what a recipe would do, and why.
- `request`: The arguments and options that commands share; nothing here loads torch.
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
