"""Where in the user's code a node comes from."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.fx.node import Node

__all__ = ["source_line"]

_FRAME = re.compile(r'^\s*File "([^"\n]+)", line (\d+)', re.MULTILINE)
_TORCH = str(Path(torch.__file__).parent)


def source_line(node: Node | None) -> str | None:
    """Return the line that a node comes from, as "net.py:12"; None where none is known.

    It is the innermost line outside of torch. A read of a parameter, which no line makes, has that
    of the first node that uses it.

    Args:
        node: of any graph of a Program.
    """
    if node is None:
        return None
    traces = (at.meta.get("stack_trace") for at in (node, *node.users))
    trace = next((text for text in traces if text), None)
    frames: list[tuple[str, str]] = _FRAME.findall(trace or "")
    own = [frame for frame in frames if not frame[0].startswith(_TORCH)] or frames
    return ":".join(own[-1]) if own else None
