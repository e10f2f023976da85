"""fxprune: a declarative graph-rewriting compiler that prunes PyTorch models."""

from __future__ import annotations

from fxprune.build import compile
from fxprune.certificate import Certificate
from fxprune.compiler import capture, finalize, is_pruned, prune, unmask
from fxprune.errors import FxpruneError
from fxprune.files import export
from fxprune.program import Program
from fxprune.recipe import Recipe, Rule, Select
from fxprune.reports import Report, report
from fxprune.verify import verify

__all__ = [
    "Certificate",
    "FxpruneError",
    "Program",
    "Recipe",
    "Report",
    "Rule",
    "Select",
    "capture",
    "compile",
    "export",
    "finalize",
    "is_pruned",
    "prune",
    "report",
    "unmask",
    "verify",
]
