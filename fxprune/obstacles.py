"""The line of a model's source that torch.export cannot take."""

from __future__ import annotations

import inspect
import linecache
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Obstacle", "forward_of", "obstacle_of"]

_TORCH = str(Path(str(torch.__file__)).parent) + os.sep
_LAYERS = os.path.join(_TORCH, "nn", "modules", "")
_OWN = str(Path(__file__).parent) + os.sep


@dataclass(frozen=True)
class Obstacle:
    """Where an export stopped, and why.

    Args:
        reason: the first line of what torch.export said.
        file: the source file; empty where it is not known.
        line: the line there, from 1.
        code: its text.
    """

    reason: str
    file: str = ""
    line: int = 0
    code: str = ""

    @property
    def place(self) -> str:
        """The short form, as `net.py, line 12`."""
        return f"{Path(self.file).name}, line {self.line}" if self.file else "no known line"

    @property
    def text(self) -> str:
        """The short form with the code."""
        return f"{self.place}: {self.code}" if self.code else self.place


def obstacle_of(model: nn.Module, error: BaseException) -> Obstacle:
    """Find the innermost line of the model's code that an error of torch.export came from.

    Args:
        model: what was exported; where no frame is of its code, its forward is named.
        error: what export raised.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    frames = list(_frames(error))
    own = [frame for frame in frames if not frame.filename.startswith(_TORCH)]
    if not frames:
        return Obstacle(reason, *forward_of(model))
    frame = (own or frames)[-1]
    return Obstacle(reason, frame.filename, frame.lineno or 0, (frame.line or "").strip())


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    """Yield the frames of the model's code, torch's own layers included, outermost first."""
    inside = False
    for frame in traceback.extract_tb(error.__traceback__):
        in_torch = frame.filename.startswith(_TORCH)
        # What comes before torch.export is the caller's code, not the model's.
        inside = inside or in_torch
        layer = frame.filename.startswith(_LAYERS) and not frame.filename.endswith("/module.py")
        if inside and (layer or not (in_torch or frame.filename.startswith((_OWN, "<")))):
            yield frame


def forward_of(model: nn.Module) -> tuple[Any, ...]:
    """Return file, line and code of a model's forward; nothing where they are not known."""
    try:
        forward = inspect.unwrap(model.forward)
        file = inspect.getsourcefile(forward) or ""
        line = inspect.getsourcelines(forward)[1]
    except (OSError, TypeError):
        return ()
    return file, line, linecache.getline(file, line).strip()
