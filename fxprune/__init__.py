"""fxprune: a declarative graph-rewriting compiler that prunes PyTorch models."""

from __future__ import annotations

from fxprune.build import compile
from fxprune.certificate import Certificate
from fxprune.checkpoint import prune_checkpoint
from fxprune.compiler import capture, finalize, is_pruned, prune, shrink, unmask
from fxprune.errors import FxpruneError
from fxprune.explaining import explain
from fxprune.files import export
from fxprune.planning import Plan, plan
from fxprune.program import Program
from fxprune.recipe import Recipe, Rule, Select
from fxprune.reports import Report, report
from fxprune.saving import load, save
from fxprune.transplanting import transplant
from fxprune.verify import verify

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
