"""How a Program's graphs use its parameters, and where in the user's code a node comes from.

A parameter is read as it is stored, or as its product with the mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.fx.node import Node

from fxprune.program import ops, parameters
from fxprune.program.parameters import kind_of, mask_of, submodule
from fxprune.program.program import Program
from fxprune.program.records import ParamSite


def parameter_read(program: Program, value: Any) -> str | None:
    """Return the first name of the parameter whose stored value a node reads; else None."""
    return _first_name(program, value, "_orig")


def mask_read_of(program: Program, value: Any) -> str | None:
    """Return the first name of the parameter whose mask a node reads; else None."""
    name = _first_name(program, value, "_mask")
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


def _first_name(program: Program, value: Any, suffix: str) -> str | None:
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


def sites_of(program: Program) -> tuple[ParamSite, ...]:
    """Return a site for each parameter, in parameter order.

    A masked parameter is used where its product with the mask is used.
    """
    uses: dict[str, list[tuple[str, str]]] = {}
    for graph in program.graphs.values():
        for node in graph.nodes:
            name = parameter_read(program, node)
            if name is not None:
                uses.setdefault(name, []).extend(_uses(program, node))
    return tuple(
        _site(program, name, aliases, tuple(dict.fromkeys(uses.get(name, []))))
        for name, aliases in parameters.aliases(program).items()
    )


def _site(
    program: Program, name: str, aliases: tuple[str, ...], uses: tuple[tuple[str, str], ...]
) -> ParamSite:
    owners = (parameters.owner(program, alias)[0] for alias in aliases)
    kinds = (program.captured.kind if o is program else kind_of(o) for o in owners)
    modules = tuple(dict.fromkeys(kinds))
    parameter = parameters.parameter(program, name)
    return ParamSite(name, aliases, modules, uses, parameter.shape, parameter.dtype)


def _uses(program: Program, read: Node) -> Iterator[tuple[str, str]]:
    for user in read.users:
        if is_product(program, user):
            yield from _uses(program, user)
        elif user.op == "call_function":
            op = ops.canonical_name(user.target)
            yield from ((op, role) for role, node in ops.roles(user) if node is read)


_FRAME = re.compile(r'^\s*File "([^"\n]+)", line (\d+)', re.MULTILINE)
_TORCH = str(Path(torch.__file__).parent)


def source_line(node: Node | None) -> str | None:
    """Return the line that a node comes from, as "net.py:12"; None where none is known.

    It is the innermost line outside of torch. A read of a parameter, which no line makes, has that
    of the first node that uses it.
    """
    if node is None:
        return None
    traces = (at.meta.get("stack_trace") for at in (node, *node.users))
    trace = next((text for text in traces if text), None)
    frames: list[tuple[str, str]] = _FRAME.findall(trace or "")
    own = [frame for frame in frames if not frame[0].startswith(_TORCH)] or frames
    return ":".join(own[-1]) if own else None
