"""Put captured regions into one RegionalProgram: their graphs read one tree by full names.

Capture of what torch.export cannot take whole: by regions, with the Python code around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError, UnexportableError
from fxprune.frontends.batch import Batched
from fxprune.frontends.module import capture_module, examples_of, obstacle_in
from fxprune.frontends.regions import (
    Finder,
    Found,
    RegionCall,
    copied,
    first_difference,
    parameters_read,
    ran,
    recorded_calls,
)
from fxprune.program import (
    BOTH,
    PATH,
    Arguments,
    HookedMask,
    Input,
    InputSpec,
    Nesting,
    Obstacle,
    Program,
    Region,
    RegionalCaptured,
    RegionalProgram,
    RowSpec,
    copy_graph,
    copy_model,
    make_part,
    training_flags,
    unhook,
)
from fxprune.support import same_bits


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


def capture_any(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: Any
) -> tuple[Program, tuple[HookedMask, ...]]:
    """Capture a model whole where torch.export takes it, else by regions; see `capture_module`.

    Raises:
        CaptureError: it cannot be captured in either way.
    """
    try:
        return capture_module(model, args, kwargs, batch)
    except UnexportableError as error:
        return _by_regions(model, args, kwargs, batch, error)


def _by_regions(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    batch: Any,
    refusal: UnexportableError,
) -> tuple[RegionalProgram, tuple[HookedMask, ...]]:
    source = copy_model(model)
    masks = unhook(source)
    example = _runnable(source, examples_of(source, args, dict(kwargs), batch))
    if example is None:
        raise refusal
    inputs = [(example.args, example.kwargs)]
    twice = _doubled(example)
    if twice is not None:
        inputs.append(twice)
    obstacle = obstacle_in(source, refusal)
    calls = recorded_calls(source, inputs)
    finder = Finder(source, calls)
    finder.descend("", source, obstacle)
    if not finder.found:
        raise UnexportableError(f"{refusal}{_also(finder)}") from refusal.__cause__
    refused = _Reasons(source, finder, calls, inputs).all()
    dense = copy_model(source)
    program = merged(source, finder.found, _spec(dense, example), refused, obstacle)
    wrong = first_difference(dense, program, [RegionCall(*given) for given in inputs])
    if wrong is not None:
        raise CaptureError(
            f"{type(model).__name__} cannot be captured whole, nor by regions: {wrong}\n{refusal}"
        ) from refusal
    return program, masks


def _also(finder: Finder) -> str:
    """Say why no submodule could be captured either."""
    parts = [(path, obstacle) for path, obstacle in finder.kept.items() if path]
    lines = [
        f"\n  nor its submodule {path}: "
        + (
            "it was not called with the example"
            if found is None
            else f"{found.reason} ({found.place})"
        )
        for path, found in parts[:3]
    ]
    return "".join(lines) + (f"\n  nor {len(parts) - 3} more" if parts[3:] else "")


def _runnable(source: nn.Module, examples: Sequence[Batched]) -> Batched | None:
    """Return the first example that the model itself takes."""
    for example in examples:
        given = (example.args, example.kwargs)
        if any(ran(copy_model(source), given, training=mode) for mode in (True, False)):
            return example
    return None


def _doubled(example: Batched) -> Arguments | None:
    """Return the example with each row twice; None where no dimension is the batch."""
    if not example.shared:
        return None
    leaves, tree = pytree.tree_flatten((example.args, example.kwargs))
    for i in example.shared:
        leaves[i] = torch.cat([leaves[i], leaves[i]], example.dims[i] or 0)
    args, kwargs = pytree.tree_unflatten(leaves, tree)
    return tuple(args), dict(kwargs)


def _spec(source: nn.Module, example: Batched) -> InputSpec:
    given = (example.args, example.kwargs)
    leaves = pytree.tree_leaves(given)
    inputs = tuple(
        _input(label, leaf, example.dims[i] if i in example.shared else None)
        for i, (label, leaf) in enumerate(zip(example.labels, leaves, strict=True))
    )
    dtypes = (p.dtype for p in source.parameters() if p.is_floating_point())
    return RowSpec(
        inputs,
        Nesting(given),
        example.names,
        tuple(example.kwargs),
        example.positional,
        next(dtypes, None),
        rows=tuple(copied(leaves)),
    )


def _input(label: str, leaf: Any, dim: int | None) -> Input:
    if not isinstance(leaf, torch.Tensor):
        return Input(label, constant=leaf)
    shape = tuple("batch" if at == dim else size for at, size in enumerate(leaf.shape))
    if leaf.is_floating_point() or leaf.is_complex() or not leaf.numel() or leaf.is_meta:
        return Input(label, shape, leaf.dtype)
    return Input(label, shape, leaf.dtype, int(leaf.min()), int(leaf.max()))


@dataclass(frozen=True)
class _Reasons:
    """Tells why no mask can stand for a parameter."""

    source: nn.Module
    finder: Finder
    calls: Mapping[str, list[RegionCall]]
    inputs: list[Arguments]

    def all(self) -> dict[str, str]:
        """Return the reasons by first name."""
        source, regions = self.source, tuple(self.finder.found)
        inside = {id(m) for path in regions for m in source.get_submodule(path).modules()}
        read = parameters_read(source, regions, self.inputs)
        first: dict[int, str] = {}
        refused: dict[str, str] = {}
        for name, parameter in source.named_parameters(remove_duplicate=False):
            known = first.setdefault(id(parameter), name)
            owner = source.get_submodule(name.rpartition(".")[0])
            if known in read or id(owner) not in inside:
                refused.setdefault(known, self._reason(name, used=known in read))
        return refused

    def _reason(self, name: str, *, used: bool) -> str:
        owner = name.rpartition(".")[0]
        if not used and not self.calls.get(owner):
            return "its module was not called with the example, so that no graph reads it"
        obstacle = next(found for at in _upwards(owner) if (found := self.finder.kept.get(at)))
        return f"it is read by Python code that torch.export cannot take ({obstacle.place})"


def _upwards(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)] + [""]
