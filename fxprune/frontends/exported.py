"""What torch.export gave, as a Program: its graph, its names, its sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.frontends.importing import GraphImporter
from fxprune.program import BOTH, Captured, Input, InputSpec, Nesting, Program, TreeModule, tree_of
from fxprune.support import quiet_export

_NOTE = (
    "captured from an ExportedProgram, whose training flags are constants of the graph: train() "
    "and eval() change nothing"
)


def capture_exported(
    exported: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Any
) -> Program:
    """Take the graph of an ExportedProgram as it is.

    Args:
        exported: what torch.export.export or load gave, decomposed or not; not changed.
        args: positional inputs in the place of its own example.
        kwargs: keyword inputs, likewise.
        batch: only the default, since it has its dynamic dimensions.

    Raises:
        CaptureError: `batch` is given, or the inputs are nested otherwise than its own.
    """
    if batch != 0:
        raise CaptureError(
            f"batch={batch!r}: an ExportedProgram has its dynamic dimensions already; export with "
            "other dynamic_shapes"
        )
    with quiet_export():
        module: Any = exported.module(check_guards=False)
    tree = tree_of(module)
    kinds = dict(_kinds(module))
    for path, part in tree.named_modules():
        if isinstance(part, TreeModule):
            part._fxprune_kind = kinds.get(path, part._fxprune_kind)
    first: dict[int, str] = {}
    named = tree.named_parameters(remove_duplicate=False)
    names = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    graph = GraphImporter(tree, names).graph(module)
    captured = Captured(
        inputs=_spec(exported, module, args, kwargs),
        outputs={BOTH: _nesting(module._out_spec)},
        first=names,
        kind=kinds.get("", "ExportedProgram"),
        frozen={True: {}, False: {}},
        notes=(_NOTE,),
    )
    # Export's module shares its tensors with the ExportedProgram.
    return copy.deepcopy(Program.assemble(tree, {BOTH: graph}, captured))


def _kinds(module: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Yield the class name of each module whose forward made a node."""
    for node in module.graph.nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            yield path.partition("@")[0], str(kind).rpartition(".")[2]


def _nesting(tree: pytree.TreeSpec) -> Nesting:
    return Nesting(pytree.tree_unflatten([0] * tree.num_leaves, tree))


def _spec(
    exported: ExportedProgram,
    module: fx.GraphModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> InputSpec:
    tree: Any = exported.call_spec.in_spec
    placeholders = module.graph.find_nodes(op="placeholder")
    example = (args, kwargs) if args or kwargs else exported.example_inputs
    leaves: list[Any] = [None] * len(placeholders)
    if example is not None:
        leaves, given = pytree.tree_flatten(tuple(example))
        if given != tree:
            raise CaptureError("args= and kwargs= are nested otherwise than those of the export")
    whole = pytree.tree_unflatten(list(range(len(placeholders))), tree)
    names, keywords = _names(module, whole)
    labels = _labels(dict(zip(names, whole[0], strict=True)) | dict(whole[1]))
    symbols: dict[str, str] = {}
    inputs = tuple(
        _input(label, leaf, node.meta.get("val"), symbols)
        for label, leaf, node in zip(labels, leaves, placeholders, strict=True)
    )
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    return InputSpec(
        inputs,
        Nesting(whole),
        names,
        keywords,
        float_dtype=next(dtypes, None),
        bounds=_bounds(exported, symbols),
    )


def _names(module: Any, whole: tuple[Any, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the positional and of the keyword arguments."""
    count, keywords = len(whole[0]), tuple(whole[1])
    known = list(module.graph._codegen.pytree_info.orig_args)
    if len(known) == count + len(keywords) and all(str(name).isidentifier() for name in known):
        return tuple(known[:count]), keywords
    return tuple(f"arg_{i}" for i in range(count)), keywords


def _labels(tree: dict[str, Any]) -> list[str]:
    paths, _ = pytree.tree_flatten_with_path(tree)
    return [f"{path[0].key}{pytree.keystr(path[1:])}" for path, _ in paths]  # pyright: ignore


def _input(label: str, leaf: Any, value: Any, symbols: dict[str, str]) -> Input:
    if not isinstance(value, torch.Tensor):
        return Input(label, constant=leaf if value is None else value)
    shape = tuple(_size(str(size), symbols) for size in value.shape)
    floats = value.dtype.is_floating_point or value.dtype.is_complex
    if floats or not isinstance(leaf, torch.Tensor) or leaf.is_meta or leaf.numel() == 0:
        return Input(label, shape, value.dtype)
    return Input(label, shape, value.dtype, int(leaf.min()), int(leaf.max()))


def _size(text: str, symbols: dict[str, str]) -> int | str:
    """Name a symbolic size: `batch`, then `batch_2`; twice the batch is `2*batch`."""
    if text.isdigit():
        return int(text)
    factor, star, symbol = text.rpartition("*")
    fresh = "batch" if not symbols else f"batch_{len(symbols) + 1}"
    return f"{factor}{star}{symbols.setdefault(symbol, fresh)}"


def _bounds(
    exported: ExportedProgram, symbols: dict[str, str]
) -> dict[str, tuple[int, int | None]]:
    """Return the sizes that the dynamic dimensions take, by their names here."""
    found: dict[str, tuple[int, int | None]] = {}
    for symbol, bounds in exported.range_constraints.items():
        lower, upper = str(bounds.lower), str(bounds.upper)
        # Export says 0 or 2 where it has not looked at fewer rows.
        low, high = int(lower) if lower.isdigit() else 0, int(upper) if upper.isdigit() else None
        if str(symbol) in symbols and (low > 2 or high is not None):
            found[symbols[str(symbol)]] = (low if low > 2 else 1, high)
    return found
