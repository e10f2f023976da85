"""All transfer rules: importing their modules puts them into the table."""

from __future__ import annotations

import importlib

__all__ = ["load"]

_MODULES = (
    "attention",
    "convolution",
    "indices",
    "joins",
    "linear",
    "norms",
    "numbers",
    "parts",
    "pointwise",
    "pools",
    "products",
    "recurrent",
    "reductions",
    "shuffles",
    "views",
    "windows",
)


def load() -> None:
    """Import every module of transfer rules."""
    for name in _MODULES:
        importlib.import_module(f"fxprune.passes.flow_{name}")
