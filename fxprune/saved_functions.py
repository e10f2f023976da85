"""torch's own functions and methods on tensors, which graphs of symbolic_trace call by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import get_overridable_functions

__all__ = ["has_method", "traced_functions", "traced_names"]

# What torch lets others override is what computes with tensors; these do more than that.
_DENIED = re.compile(
    r"_.*|apply_|autocast|backward|.*data_ptr|fbgemm_.*|map2?_|module_load|numpy|pin_memory|"
    r"record_stream|register_.*|retain_grad|set_|share_memory_|storage.*|tolist|untyped_storage"
)


# These compute as well, and torch does not let others override them.
_ALSO = {
    torch: "arange empty eye full linspace ones rand randint randn randperm tensor zeros",
    functional: (
        "celu_ elu_ hardsigmoid hardswish hardtanh_ leaky_relu_ relu_ rrelu_ selu_ sigmoid tanh "
        "threshold_"
    ),
    torch.Tensor: "",
}


@cache
def traced_functions() -> Mapping[str, Any]:
    """Return the functions by name, as `torch.add`, `torch.Tensor.view`."""
    places: dict[str, Any] = {
        "torch": torch,
        "torch.nn.functional": functional,
        "torch.Tensor": torch.Tensor,
    }
    known = get_overridable_functions()
    found: dict[str, Any] = {}
    for place, owner in places.items():
        others = set(_ALSO[owner].split())
        for name in sorted(others | set(dir(owner))):
            function: Any = getattr(owner, name, None)
            if name in others or (not _DENIED.fullmatch(name) and _is_in(function, known[owner])):
                found[f"{place}.{name}"] = function
    return found


@cache
def traced_names() -> Mapping[Any, str]:
    """Return the names by function."""
    return {function: name for name, function in traced_functions().items()}


def has_method(name: str) -> bool:
    """Tell whether a graph may call a method of a tensor."""
    return f"torch.Tensor.{name}" in traced_functions()


def _is_in(function: Any, known: list[Any]) -> bool:
    # Some of torch's objects compare to others as arrays do.
    return callable(function) and any(function is other for other in known)
