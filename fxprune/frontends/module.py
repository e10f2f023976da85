"""Capture: from an nn.Module to a Program, through torch.export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError, UnexportableError
from fxprune.frontends.batch import Batched, batched, name_arguments
from fxprune.frontends.batch_sizes import check_conditions, takes_a_batch_of_one
from fxprune.frontends.importing import GraphImporter, unlift
from fxprune.frontends.modes import (
    Readers,
    find_deciders,
    layers_with_live_flags,
    live_devices,
    readers,
    settle_modes,
    tells_eval_mode,
)
from fxprune.program import (
    BOTH,
    EVAL,
    TRAIN,
    Captured,
    HookedMask,
    Input,
    InputSpec,
    Nesting,
    Obstacle,
    Program,
    check_names,
    copy_model,
    flat_regions,
    obstacle_of,
    refuse_spread_source,
    training_flags,
    tree_of,
    unhook,
    with_flags,
)
from fxprune.support import quiet_export

_UNKNOWN_OUTPUT = "in output, which is not a known type"  # as torch.export says it


def capture_module(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: Any
) -> tuple[Program, tuple[HookedMask, ...]]:
    """Capture a copy of a model as a dense Program.

    Args:
        model: any module that torch.export takes; not changed.
        args: example positional inputs.
        kwargs: example keyword inputs.
        batch: see `fxprune.frontends.batch.batched`.

    Returns:
        The Program, and the masks of torch.nn.utils.prune that the model had.

    Raises:
        CaptureError: export refuses the model, or the batch became a constant.
    """
    refuse_spread_source(model)
    check_names(model, type(model).__name__)
    source = copy_model(model)
    masks = unhook(source)
    return capture_source(source, examples_of(source, args, dict(kwargs), batch)), masks


def examples_of(
    source: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Any
) -> list[Batched]:
    """Return the inputs to try: a batch of one doubled, and as it is where that may be wrong.

    Raises:
        CaptureError: `batch` does not fit the arguments; the message names `batch=`.
    """
    doubled = batched(source, args, kwargs, batch)
    if not doubled.mixed:
        return [doubled]
    return [doubled, batched(source, args, kwargs, batch, double=False)]


def capture_source(source: nn.Module, examples: Sequence[Batched]) -> Program:
    """Capture a private copy of a model.

    Args:
        source: without hooks of torch.nn.utils.prune; its forward and flags may be changed.
        examples: inputs; each is tried where export refuses the one before.

    Raises:
        UnexportableError: export refuses the model with every example.
        CaptureError: the batch became a constant.
    """
    flags = {name: module.training for name, module in source.named_modules()}
    frozen = {mode: training_flags(source, mode) for mode in (True, False)}
    for name, module in source.named_modules():
        module.training = flags[name]
    example, exported = _export_first(source, examples)
    program = _assemble(source, exported, example, frozen)
    settle_modes(program)
    live_devices(program)
    if BOTH not in program.graphs:
        program.captured.deciders = find_deciders(source, example.args, example.kwargs)
    program.recompile()
    if not takes_a_batch_of_one(program, source, example):
        program.captured.inputs = replace(program.captured.inputs, smallest=2)
    return program


def _export_first(
    source: nn.Module, examples: Sequence[Batched]
) -> tuple[Batched, dict[str, fx.GraphModule]]:
    name_arguments(source, examples[0])
    for example in examples[:-1]:
        try:
            return example, _exported(source, example)
        except CaptureError:
            continue
    return examples[-1], _exported(source, examples[-1])


def _exported(source: nn.Module, example: Batched) -> dict[str, fx.GraphModule]:
    """Export a model in train mode, and in eval mode unless the first graph tells the other."""
    train, flags = _export(source, example, training=True)
    if not flags.others and tells_eval_mode(train.graph, layers_with_live_flags(source)):
        return {BOTH: train}
    return {TRAIN: train, EVAL: _export(source, example, training=False)[0]}


def _export(
    source: nn.Module, example: Batched, *, training: bool
) -> tuple[fx.GraphModule, Readers]:
    with with_flags(source, training), quiet_export(), flat_regions(), readers(source) as flags:
        try:
            exported = torch.export.export(
                source,
                example.args,
                example.kwargs,
                dynamic_shapes=_dynamic_shapes(example),
                strict=False,
            )
        except Exception as error:  # export raises many kinds, all of which mean the same here
            raise UnexportableError(_explain(source, error)) from error
    check_conditions(exported, type(source).__name__)
    return unlift(exported), flags


def _dynamic_shapes(example: Batched) -> Any:
    """Return the dimensions by argument name."""
    args, kwargs = example.shapes
    return {**dict(zip(example.names, args, strict=True)), **kwargs}


def obstacle_in(model: nn.Module, error: CaptureError) -> Obstacle:
    """Return the line that a failed capture of a model stopped at."""
    return obstacle_of(model, error.__cause__ or error)


def _explain(source: nn.Module, error: Exception) -> str:
    found = obstacle_of(source, error)
    at = f'\n  at File "{found.file}", line {found.line}: {found.code}' if found.file else ""
    advice = (
        "let forward return tensors in tuples, lists and dicts; to a model of Hugging Face give "
        'kwargs={"use_cache": False}'
        if _UNKNOWN_OUTPUT in found.reason
        else "rewrite the line without control flow that depends on values, or give args, kwargs "
        "and batch= that fit"
    )
    return f"torch.export cannot take {type(source).__name__} whole: {found.reason}{at}\n  {advice}"


def _assemble(
    source: nn.Module,
    exported: Mapping[str, fx.GraphModule],
    example: Batched,
    frozen: dict[bool, dict[str, bool]],
) -> Program:
    root = tree_of(source)
    first: dict[int, str] = {}
    named = source.named_parameters(remove_duplicate=False)
    names = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    importer = GraphImporter(root, names)
    graphs = {mode: importer.graph(module) for mode, module in exported.items()}
    captured = Captured(
        inputs=_input_spec(source, next(iter(exported.values())), example),
        outputs={mode: _nesting(module) for mode, module in exported.items()},
        first=names,
        kind=type(source).__name__,
        frozen=frozen,
    )
    return Program.assemble(root, graphs, captured, compiled=False)


def _nesting(module: fx.GraphModule) -> Nesting:
    tree: pytree.TreeSpec = module._out_spec  # pyright: ignore
    return Nesting(pytree.tree_unflatten([0] * tree.num_leaves, tree))


def _input_spec(source: nn.Module, exported: fx.GraphModule, example: Batched) -> InputSpec:
    given = (example.args, example.kwargs)
    leaves = pytree.tree_leaves(given)
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
    symbols: dict[str, str] = {}
    inputs = tuple(
        _input(label, leaf, node, symbols)
        for label, leaf, node in zip(example.labels, leaves, placeholders, strict=True)
    )
    _check_batch(inputs, leaves, example)
    dtypes = (p.dtype for p in source.parameters() if p.is_floating_point())
    keywords = tuple(example.kwargs)
    return InputSpec(
        inputs,
        Nesting(given),
        example.names,
        keywords,
        example.positional,
        next(dtypes, None),
    )


def _check_batch(inputs: tuple[Input, ...], leaves: list[Any], example: Batched) -> None:
    """Check that the batch did not become a constant of the graph."""
    static = [i for i in example.shared if isinstance(inputs[i].shape[example.dims[i] or 0], int)]
    if not static or (not example.by_name and len(static) < len(example.shared)):
        return
    label, dim = example.labels[static[0]], example.dims[static[0]] or 0
    raise CaptureError(
        f"batch={dim}: dimension {dim} of input {label!r} became the constant "
        f"{leaves[static[0]].shape[dim]} in the graph; let forward compute with the batch size it "
        "is given, name another dimension in batch=, or capture with batch=None"
    )


def _input(label: str, leaf: Any, node: Node, symbols: dict[str, str]) -> Input:
    if not isinstance(leaf, torch.Tensor):
        return Input(label, constant=leaf)
    value: Any = node.meta.get("val")
    shape = tuple(
        size if str(dim).isdigit() else _symbol(str(dim), symbols)
        for dim, size in zip(value.shape, leaf.shape, strict=True)
    )
    whole = not (leaf.is_floating_point() or leaf.is_complex()) and leaf.numel() > 0
    if not whole or leaf.is_meta:
        return Input(label, shape, leaf.dtype)
    return Input(label, shape, leaf.dtype, int(leaf.min()), int(leaf.max()))


def _symbol(text: str, symbols: dict[str, str]) -> str:
    """Name a symbolic size: `batch`, then `batch_2`; twice the batch is `2*batch`."""
    factor, star, symbol = text.rpartition("*")
    fresh = "batch" if not symbols else f"batch_{len(symbols) + 1}"
    return f"{factor}{star}{symbols.setdefault(symbol, fresh)}"
