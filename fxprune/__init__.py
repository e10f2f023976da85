"""fxprune: a declarative graph-rewriting compiler that prunes PyTorch models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxprune.support import lazy_names

if TYPE_CHECKING:
    from fxprune.channels import transplant
    from fxprune.checkpoint import prune_checkpoint
    from fxprune.compiler import (
        capture,
        compile,
        explain,
        finalize,
        is_pruned,
        plan,
        prune,
        shrink,
        unmask,
    )
    from fxprune.errors import FxpruneError
    from fxprune.files import export, load, save
    from fxprune.program import Program
    from fxprune.recipe import Recipe, Rule, Select
    from fxprune.reports import Plan, Report, report
    from fxprune.verification import Certificate, verify

__all__ = [
    "Certificate",
    "FxpruneError",
    "Plan",
    "Program",
    "Recipe",
    "Report",
    "Rule",
    "Select",
    "capture",
    "compile",
    "explain",
    "export",
    "finalize",
    "is_pruned",
    "load",
    "plan",
    "prune",
    "prune_checkpoint",
    "report",
    "save",
    "shrink",
    "transplant",
    "unmask",
    "verify",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "channels": "transplant",
        "checkpoint": "prune_checkpoint",
        "compiler": "capture compile explain finalize is_pruned plan prune shrink unmask",
        "errors": "FxpruneError",
        "files": "export load save",
        "program": "Program",
        "recipe": "Recipe Rule Select",
        "reports": "Plan Report report",
        "verification": "Certificate verify",
    },
)
