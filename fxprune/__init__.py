"""fxprune: a declarative graph-rewriting compiler that prunes PyTorch models."""

from __future__ import annotations

from fxprune.compiler import capture, finalize, is_pruned, prune, unmask
from fxprune.errors import FxpruneError
from fxprune.program import Program
from fxprune.recipe import Recipe, Rule, Select

__all__ = [
    "FxpruneError",
    "Program",
    "Recipe",
    "Rule",
    "Select",
    "capture",
    "finalize",
    "is_pruned",
    "prune",
    "unmask",
]
