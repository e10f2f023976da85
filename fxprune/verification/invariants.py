"""Invariants of a Program after any pass, and outputs before and after a step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import InvariantError
from fxprune.program import (
    Program,
    is_product,
    mask_of,
    mask_read_of,
    parameter_read,
    parameters,
    part,
)
from fxprune.support import same_bits


def check_invariants(program: Program, by: str) -> None:
    """Check keys, shapes, aliases and products of masked parameters, after the pass `by`."""
    for name, aliases in parameters.aliases(program).items():
        held = {id(parameters.parameter(program, alias)) for alias in aliases}
        found = [mask_of(*parameters.owner(program, alias)) for alias in aliases]
        masks = {id(mask) for mask in found}
        if len(held) > 1 or len(masks) > 1:
            raise InvariantError(f"{by}: the aliases {aliases} have no longer one tensor and mask")
        if found[0] is not None:
            _check_mask(program, name, by)
    for mode, graph in program.graphs.items():
        products = Counter(
            parameter_read(program, node.args[0])
            for node in graph.nodes
            if is_product(program, node)
        )
        doubled = [name for name, count in products.items() if count > 1]
        if doubled:
            raise InvariantError(f"{by}: {doubled[0]!r} is masked twice in the {mode} graph")
        for node in graph.find_nodes(op="get_attr"):
            _check_read(program, node, by)


def _check_mask(program: Program, name: str, by: str) -> None:
    mask, parameter = parameters.masks(program)[name], parameters.parameter(program, name)
    if (mask.shape, mask.dtype) != (parameter.shape, parameter.dtype):
        raise InvariantError(
            f"{by}: the mask of {name!r} is {tuple(mask.shape)} {mask.dtype}, the parameter "
            f"{tuple(parameter.shape)} {parameter.dtype}"
        )


def _check_read(program: Program, node: Any, by: str) -> None:
    """Check that a masked parameter is read only by its product, and a plain one by its name."""
    name = parameter_read(program, node)
    if name is None or mask_read_of(program, node) is not None:
        return
    masked = name in parameters.masks(program)
    if masked and not all(is_product(program, user) for user in node.users):
        raise InvariantError(f"{by}: node {node.name} reads {name!r} past its mask")
    stored = f"{name}_orig" if masked else name
    if str(node.target) != stored:
        raise InvariantError(f"{by}: node {node.name} reads {node.target!r}, not {stored!r}")


def check_values(before: Program, after: Program, by: str) -> None:
    """Check that this process's part of each parameter reads the same, bit for bit.

    In the place of outputs, where parameters are spread over processes and a forward needs them.
    """
    for name in parameters.aliases(before):
        old, new = (part(parameters.value(program, name)) for program in (before, after))
        if not same_bits(old, new):
            raise InvariantError(
                f"{by} promised equal parameters, but {name!r} differs; nothing was changed"
            )


def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Run a module in eval mode on copies; return the leaves of its output. It stays as it was."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    flags = [(part, part.training) for part in module.modules()]
    kept = _kept_buffers(module)
    try:
        for part, _ in flags:
            part.training = False
        # Not under no_grad: torch.matmul folds its operands differently when a weight requires no
        # gradient, as a product made under no_grad does, and then rounds differently.
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs = pytree.tree_leaves(module(*args, **kwargs))
        return [x.detach() if isinstance(x, torch.Tensor) else x for x in outputs]
    finally:
        for part, flag in flags:
            part.training = flag
        with torch.no_grad():
            for buffer, version, values in kept:
                if buffer._version != version:
                    buffer.copy_(values)


def _kept_buffers(module: nn.Module) -> list[tuple[torch.Tensor, int, torch.Tensor]]:
    """Return each buffer that a graph may write to, how often it was, and a copy; no masks."""
    masks = parameters.masks(module).values() if isinstance(module, Program) else ()
    read = {id(mask) for mask in masks}
    found = [x for x in module.buffers() if id(x) not in read and not x.is_inference()]
    return [(buffer, buffer._version, buffer.clone()) for buffer in found]


def check_same(before: list[Any], after: list[Any], by: str) -> None:
    """Check that two observations are equal bit for bit; raise InvariantError naming the output."""
    if len(before) != len(after):
        raise InvariantError(f"{by} changed the number of outputs; nothing was changed")
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        tensors_both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if not (same_bits(a, b) if tensors_both else type(a) is type(b) and a == b):
            raise InvariantError(
                f"{by} promised equal outputs, but output {i} differs; nothing was changed"
            )
