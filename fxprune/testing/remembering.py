"""All that a failed or a pure operation must leave as it was, taken down and held to later."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune import tensors
from fxprune.graphs import graph_text
from fxprune.program import Program
from fxprune.testing.comparing import entry_difference

__all__ = ["Memory", "program_text", "snapshot"]


def program_text(program: Program) -> str:
    """Write the graphs of a Program, each under its mode where there are two."""
    graphs = {mode: graph_text(graph) for mode, graph in program.graphs.items()}
    if len(graphs) == 1:
        return next(iter(graphs.values()))
    return "\n".join(f"[{mode}]\n{graph}" for mode, graph in graphs.items())


def snapshot(program: Program) -> dict[str, Any]:
    """Take all that a failed operation must leave: bytes, keys, objects, flags and graphs."""
    state = {key: _bytes(tensor) for key, tensor in program.state_dict().items()}
    return {
        "state": list(state.items()),
        **_objects(program),
        "text": program_text(program),
        "code": program.code,
        "names": list(program.captured.first.items()),
        "records": program.captured.records,
        "masks": list(tensors.masks(program)),
        "replaced": list(program.captured.replaced),
    }


class Memory:
    """What a model was, and the state of the global random generators.

    Args:
        model: a Program or any module; not held on to, but for its tensors' identity.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> memory = Memory(model)
        >>> _ = model.bias.data.fill_(7.0)
        >>> memory.difference(model).startswith("'bias', entry (0,): ")
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self._values = {key: value.detach().clone() for key, value in _values(model).items()}
        self._parts = _parts(model)
        self._generators = _generators()

    def difference(self, model: nn.Module, *, generators: bool = True) -> str | None:
        """Return what is first otherwise than it was; None where nothing is.

        Args:
            model: the same model.
            generators: whether random generators count, too.
        """
        found = self._value_difference(_values(model))
        if found is not None:
            return found
        parts = _parts(model)
        changed = next((key for key in self._parts if parts[key] != self._parts[key]), None)
        if changed is not None:
            return f"{changed}{_first_line(self._parts[changed], parts[changed])}"
        return self.drawn() if generators else None

    def drawn(self) -> str | None:
        """Return which global random generator was drawn from, or None."""
        drawn = [name for name, state in _generators().items() if state != self._generators[name]]
        return f"the global generator of {drawn[0]} was drawn from" if drawn else None

    def _value_difference(self, values: dict[str, Tensor]) -> str | None:
        if list(values) != list(self._values):
            changed = sorted(set(values) ^ set(self._values))
            named = f"{changed[0]!r} came or went" if changed else "their order"
            return f"the keys of parameters and buffers: {named}"
        for key, before in self._values.items():
            if _bytes(before) != _bytes(values[key]) or before.dtype != values[key].dtype:
                return f"{key!r}{entry_difference(before, values[key])} (before first)"
        return None


def _values(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _parts(model: nn.Module) -> dict[str, Any]:
    """Take what is not values, by what messages call it."""
    parts: dict[str, Any] = {}
    if isinstance(model, Program):
        parts["the graph"] = program_text(model)
        parts["the code"] = model.code
        parts["the masks"] = list(tensors.masks(model))
        parts["the names"] = list(model.captured.first.items())
        parts["the records"] = [repr(record) for record in model.captured.records]
    objects = _objects(model)
    parts["the parameters' identity"] = objects["parameters"]
    for path, attributes in objects["modules"].items():
        parts[f"an attribute of {path!r}" if path else "an attribute of the model"] = attributes
    return parts


def _first_line(before: Any, after: Any) -> str:
    """Say which line of a text is otherwise, or which key."""
    if isinstance(before, str):
        lines = zip([*before.splitlines(), ""], [*after.splitlines(), ""], strict=False)
        old, new = next((pair for pair in lines if pair[0] != pair[1]), ("", ""))
        return f": {old.strip()!r} before, {new.strip()!r} after"
    if isinstance(before, dict):
        changed = [key for key in before if after.get(key, None) != before[key]]
        return f": {changed[0]!r} changed" if changed else " came"
    return ""


def _objects(model: nn.Module) -> dict[str, Any]:
    return {
        "modules": {path: _attributes(module) for path, module in model.named_modules()},
        "parameters": [(name, id(p)) for name, p in model.named_parameters()],
    }


def _generators() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),
    }


def _bytes(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        return b""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Take a module's attributes in order, its tensors by identity, but for graphs and data."""
    kept = {k: v for k, v in vars(module).items() if k not in ("graphs", "captured", "_graph")}
    return {key: _told(value) for key, value in kept.items()}


def _told(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, id(part)) for key, part in value.items()]
    # Of what is a tensor the identity will do: == of tensors gives no single answer.
    if isinstance(value, Tensor):
        return id(value)
    return copy.copy(value) if isinstance(value, set | Sequence) else value
