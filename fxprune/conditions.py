"""What torch.export assumed of the batch size while it followed one way through forward."""

from __future__ import annotations

import re
from typing import Any

import torch

from fxprune.errors import CaptureError

__all__ = ["check_conditions"]


def check_conditions(exported: torch.export.ExportedProgram, kind: str) -> None:
    """Refuse a graph that is right for some batch sizes only.

    Sizes of 0 and 1 are always taken apart by export, and equal sizes of several inputs are checked
    at each call.

    Args:
        exported: what torch.export gave.
        kind: the class name of the source.

    Raises:
        CaptureError: forward decided on the batch size; names the condition and `batch=`.
    """
    sizes = {str(size) for node in exported.graph.nodes for size in _input_sizes(node)}
    for symbol, allowed in exported.range_constraints.items():
        if str(symbol) not in sizes:
            continue
        lower, upper = str(allowed.lower), str(allowed.upper)
        if int(lower) > 2 or upper.isdigit():
            at_most = f" and at most {upper}" if upper.isdigit() else ""
            raise CaptureError(_message(kind, f"the batch size is at least {lower}{at_most}"))
    conditions: Any = getattr(exported, "_guards_code", None) or ()
    for condition in conditions:
        if "size()" in condition and re.search(r"[%<>!]", condition):
            raise CaptureError(_message(kind, condition))


def _input_sizes(node: Any) -> Any:
    value = node.meta.get("val") if node.op == "placeholder" else None
    return value.shape if isinstance(value, torch.Tensor) else ()


def _message(kind: str, condition: str) -> str:
    return (
        f"the graph of {kind} is right only where {condition}: forward decides on the batch size; "
        "let it compute alike for all sizes, or capture with batch=None for this size alone"
    )
