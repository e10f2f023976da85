"""How a Program's graphs read its parameters: the read itself, or its product with the mask."""

from __future__ import annotations

from typing import Any

from torch.fx.node import Node

from fxprune import ops
from fxprune.program import Program
from fxprune.shell import mask_of, submodule

__all__ = ["is_product", "mask_read_of", "parameter_of", "parameter_read"]


def parameter_read(program: Program, value: Any) -> str | None:
    """Return the first name of the parameter whose stored value a node reads; else None.

    Args:
        program: the Program of the node.
        value: any argument of a node; only `get_attr` nodes read parameters.
    """
    return _named(program, value, "_orig")


def mask_read_of(program: Program, value: Any) -> str | None:
    """Return the first name of the parameter whose mask a node reads; else None."""
    name = _named(program, value, "_mask")
    return None if name is None or not str(value.target).endswith("_mask") else name


def is_product(program: Program, value: Any) -> bool:
    """Tell whether a node is the product of a masked parameter with its mask."""
    if not isinstance(value, Node) or value.op != "call_function" or len(value.args) != 2:
        return False
    if ops.canonical_name(value.target) != "mul":
        return False
    name = mask_read_of(program, value.args[1])
    return name is not None and parameter_read(program, value.args[0]) == name


def parameter_of(program: Program, value: Any) -> str | None:
    """Return the first name of the parameter that a node stands for, masked or not; else None."""
    if is_product(program, value):
        return parameter_read(program, value.args[0])
    return parameter_read(program, value)


def _named(program: Program, value: Any, suffix: str) -> str | None:
    if not isinstance(value, Node) or value.op != "get_attr":
        return None
    target = str(value.target)
    if _is_of_the_source(program, target, suffix):
        return None
    # A source may itself have a parameter called weight_orig: the exact name comes first.
    for name in (target, target.removesuffix(suffix)):
        if name in program.captured.first:
            return program.captured.first[name]
    return None


def _is_of_the_source(program: Program, target: str, suffix: str) -> bool:
    """Tell whether a buffer only looks like the storage of a masked parameter."""
    if not target.endswith(suffix) or target in program.captured.first:
        return False
    path, _, attribute = target.rpartition(".")
    owner = submodule(program, path)
    if attribute not in owner._buffers:
        return False
    return suffix == "_orig" or mask_of(owner, attribute.removesuffix(suffix)) is None
