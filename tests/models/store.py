"""Captures that tests share: most of a test's time is torch.export, a pickled Program takes 20 ms.

What is about capture itself calls `fxprune.capture`.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

import fxprune
from fxprune.program.program import Program

FOLDER = "FXPRUNE_TEST_CAPTURES"
"""The environment variable that names the folder of the session, for all of its processes."""


def capture(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    batch: Any = 0,
) -> Program:
    """Capture a model, or read what an earlier test of the session captured of an equal one.

    Two are equal if their pickles are: values, plain attributes, and, for classes and functions
    that only a test knows, code and closures too. The Program is the caller's own.
    """
    folder = os.environ.get(FOLDER)
    if folder is None:  # not under pytest
        return fxprune.capture(model, args, kwargs, batch=batch)
    path = Path(folder, _key((model, args, kwargs, batch)))
    if path.exists():
        return pickle.loads(path.read_bytes())
    program = fxprune.capture(model, args, kwargs, batch=batch)
    _write(path, cloudpickle.dumps(program))
    return program


def _key(example: Any) -> str:
    file = io.BytesIO()
    _Pickler(file).dump(example)
    return hashlib.sha256(file.getvalue()).hexdigest()


class _Pickler(cloudpickle.Pickler):
    """Writes the values of tensors, where torch writes addresses too."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return super().reducer_override(obj)
        values = obj.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return type(obj), (str(obj.dtype), obj.shape, obj.stride(), obj.requires_grad, values)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole: another process may ask for it at the same time."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
