"""Put captured regions into one RegionalProgram: their graphs read one tree by full names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.bits import same_bits
from fxprune.graphs import copy_graph
from fxprune.importing import PATH
from fxprune.inputs import InputSpec
from fxprune.nesting import Nesting
from fxprune.obstacles import Obstacle
from fxprune.parts import make_part
from fxprune.program import BOTH, Program
from fxprune.region import Region
from fxprune.regional import RegionalCaptured, RegionalProgram
from fxprune.regions import Found
from fxprune.source import training_flags

__all__ = ["merged"]


def merged(
    source: nn.Module,
    found: Mapping[str, Found],
    inputs: InputSpec,
    refused: Mapping[str, str],
    obstacle: Obstacle,
) -> RegionalProgram:
    """Make one Program of a model and the captured parts of it.

    Args:
        source: a private copy of the model, which becomes the program's own.
        found: the captured submodules, by name.
        inputs: what the whole model takes.
        refused: the parameters that no graph reads, by first name, and why.
        obstacle: the line that torch.export cannot take.
    """
    flags = {module: module.training for module in source.modules()}
    frozen = {mode: training_flags(source, mode) for mode in (True, False)}
    for module, flag in flags.items():
        module.training = flag
    first: dict[int, str] = {}
    named = source.named_parameters(remove_duplicate=False)
    names = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    graphs: dict[str, fx.Graph] = {}
    outputs: dict[str, Nesting] = {}
    regions: dict[str, Region] = {}
    for path, part in found.items():
        program = part.program
        region = regions[path] = _region(path, part, source)
        moved = _moved_constants(source, path, program)
        for mode, graph in program.graphs.items():
            key = region.keys[mode]
            graphs[key] = _renamed(graph, path, names, moved)
            outputs[key] = program.captured.outputs[mode]
    captured = RegionalCaptured(
        inputs=inputs,
        outputs=outputs,
        first=names,
        kind=type(source).__name__,
        frozen=frozen,
        notes=(_note(type(source).__name__, tuple(found), obstacle),),
        refused=refused,
        regions=regions,
        obstacle=obstacle,
    )
    _make_parts(source, tuple(found))
    return RegionalProgram.assemble(source, graphs, captured)


def _region(path: str, part: Found, source: nn.Module) -> Region:
    program = part.program
    hooks: Mapping[int, Any] = source.get_submodule(path)._forward_pre_hooks
    return Region(
        path=path,
        inputs=program.captured.inputs,
        keys={mode: path if mode == BOTH else f"{path}:{mode}" for mode in program.graphs},
        deciders=tuple(_joined(path, name) for name in program.captured.deciders),
        plain=not hooks,
        twins=part.twins,
    )


def _moved_constants(source: nn.Module, path: str, program: Program) -> dict[str, str]:
    """Put what capture added to a region's tree into the source; return new names by old ones."""
    moved: dict[str, str] = {}
    region = source.get_submodule(path)
    reads = {str(n.target) for g in program.graphs.values() for n in g.find_nodes(op="get_attr")}
    for target in sorted(reads):
        above, _, name = target.rpartition(".")
        value = getattr(program.get_submodule(above), name)
        owner = region.get_submodule(above)
        added = isinstance(value, (torch.Tensor, nn.Module))
        if not added or name in owner._parameters or name in owner._buffers:
            continue
        kept = _place(owner, name, value)
        moved[target] = f"{above}.{kept}" if above else kept
    return moved


def _place(owner: nn.Module, name: str, value: Any) -> str:
    """Give a module a constant, under its name where that is free; return the name."""
    there = vars(owner).get(name)
    if _is_equal(there, value):
        # A plain attribute of the source becomes a buffer, which moves with the program.
        del vars(owner)[name]
    while hasattr(owner, name):
        name = f"{name}_"
    if isinstance(value, nn.Module):
        owner.add_module(name, value)
    else:
        owner.register_buffer(name, value, persistent=False)
    return name


def _is_equal(a: Any, b: Any) -> bool:
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and same_bits(a, b)


def _renamed(
    graph: fx.Graph, path: str, names: Mapping[str, str], moved: Mapping[str, str]
) -> fx.Graph:
    """Return a copy of a region's graph with full names."""
    renamed = copy_graph(graph)
    for node in renamed.nodes:
        if PATH in node.meta:
            node.meta = {**node.meta, PATH: _joined(path, node.meta[PATH])}
        if node.op != "get_attr" or node.target == "device":
            continue
        target = str(node.target)
        full = _joined(path, moved.get(target, target))
        node.target = names.get(full, full)
    return renamed


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if name else path


def _make_parts(source: nn.Module, regions: tuple[str, ...]) -> None:
    roots = {id(source.get_submodule(path)) for path in regions}
    for module in source.modules():
        if id(module) in roots or module._parameters:
            make_part(module, region=id(module) in roots)


def _note(kind: str, regions: tuple[str, ...], obstacle: Obstacle) -> str:
    shown = ", ".join(regions[:12]) + (f" and {len(regions) - 12} more" if regions[12:] else "")
    return (
        f"captured by regions ({shown}): torch.export cannot take {kind} whole "
        f"({obstacle.text}), so that its own Python code runs around them"
    )
