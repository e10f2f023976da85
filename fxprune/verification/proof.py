"""Proof by graphs: Programs with equal graphs over equal tensors compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from fxprune.errors import InvariantError
from fxprune.program import (
    EVAL,
    TRAIN,
    Program,
    TreeModule,
    example_of,
    fingerprint,
    is_product,
    mask_read_of,
    parameter_read,
    parameters,
)
from fxprune.support import exclusive, same_bits
from fxprune.verification.certificate import Certificate, Failure
from fxprune.verification.invariants import check_same, observe


def check_outputs(before: Program, after: Program, by: str) -> None:
    """Check that a step kept the outputs: on a drawn input, or else by the graphs."""
    if before.captured.inputs.drawable:
        args, kwargs = example_of(before)
        with exclusive():
            seen = observe(before, args, kwargs), observe(after, args, kwargs)
        check_same(*seen, by)
        return
    why = why_not_same(after, before)
    if why is not None:
        raise InvariantError(f"{by} promised equal outputs, but {why}; nothing was changed")


def prove_same(after: Program, before: Program, seed: int) -> Certificate:
    """Certify by the graphs alone that two Programs give equal outputs for every input."""
    why = why_not_same(after, before)
    modes = (EVAL, TRAIN)
    if why is None:
        inputs = tuple(f"{mode}: every input, as graphs and tensors are equal" for mode in modes)
        return Certificate("same", 0.0, seed, len(inputs), inputs, 0.0)
    message = f"{why}; give args= to compare outputs"
    failures = tuple(Failure(mode, "every input", None, None, message) for mode in modes)
    return Certificate("same", 0.0, seed, 0, (), 0.0, failures)


def why_not_same(after: Program, before: Program) -> str | None:
    """Return why two Programs may differ; None where their graphs and tensors are equal.

    A product of a parameter with its mask counts as a read of the parameter's masked value.
    """
    if after.graphs.keys() != before.graphs.keys():
        return f"the one has graphs for {list(after.graphs)}, the other for {list(before.graphs)}"
    for mode in after.graphs:
        if _lines(after, after.graphs[mode]) != _lines(before, before.graphs[mode]):
            return f"the graphs for {mode} differ"
        if after.captured.outputs[mode].tree != before.captured.outputs[mode].tree:
            return f"the outputs for {mode} are nested differently"
    own, other = dict(_tensors(after)), dict(_tensors(before))
    if own.keys() != other.keys():
        return f"{sorted(own.keys() ^ other.keys())[0]!r} is a tensor of one of them alone"
    differing = [name for name in own if not same_bits(own[name], other[name])]
    if differing:
        return f"the values of {differing[0]!r} differ"
    layers = dict(_layers(before))
    changed = [path for path, settings in _layers(after) if layers.get(path) != settings]
    return f"the layer {changed[0]!r} differs" if changed else None


def _lines(program: Program, graph: fx.Graph) -> list[Any]:
    """Return the graph's fingerprint, parameters by their own names, masked or not."""
    names = {
        ("name", str(node.target)): parameter_read(program, node)
        for node in graph.nodes
        if node.op == "get_attr"
    }
    lines = fingerprint(
        graph,
        skip=lambda node: mask_read_of(program, node) is not None,
        transparent=lambda node: is_product(program, node),
    )
    return [(op, names.get(target) or target, *rest) for op, target, *rest in lines]


def _tensors(program: Program) -> Iterator[tuple[str, torch.Tensor]]:
    for name in parameters.aliases(program):
        yield name, parameters.value(program, name)
    masked = {
        f"{alias}_mask" for alias in program.captured.first if alias in parameters.masks(program)
    }
    for name, buffer in program.named_buffers(remove_duplicate=False):
        if name not in masked:
            yield name, buffer


def _layers(program: Program) -> Iterator[tuple[str, str]]:
    """Yield what is called as it is: layers and nested graphs, by path, with their settings."""
    for path, module in program.named_modules(remove_duplicate=False):
        if path and not isinstance(module, TreeModule):
            graph = module.graph if isinstance(module, fx.GraphModule) else None
            name = f"{type(module).__qualname__}({module.extra_repr()})"
            yield path, name if graph is None else repr(fingerprint(graph))
