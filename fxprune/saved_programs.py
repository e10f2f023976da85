"""A Program as a document and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import FormatError
from fxprune.program import BOTH, EVAL, TRAIN, Captured, Program
from fxprune.saved_document import SavedGraph, SavedProgram
from fxprune.saved_facts import decode_inputs, decode_table, encode_inputs, encode_table
from fxprune.saved_graphs import decode_graph, encode_graph
from fxprune.saved_nesting import decode_nesting, encode_nesting
from fxprune.saved_tensors import TensorWriter, decode_tensors, names_of
from fxprune.saved_trees import decode_tree, encode_tree
from fxprune.shell import kind_of, raw_parameter

__all__ = ["decode_program", "encode_program"]

_FLAGS = {True: "train", False: "eval"}


def encode_program(program: Program) -> tuple[SavedProgram, dict[str, torch.Tensor]]:
    """Return a Program as a document and the tensors that it names.

    Args:
        program: not changed; its tensors are shared where they are as the file wants them.

    Raises:
        FormatError: says which node, tensor or module a file cannot hold.
    """
    captured = program.captured
    writer = TensorWriter()
    writer.survey(dict(names_of(program)))
    modules = encode_tree(program, captured.kind, writer)
    traces: dict[str, int] = {}
    graphs = {
        mode: SavedGraph(
            nodes=encode_graph(graph, program, traces),
            outputs=encode_nesting(captured.outputs[mode]),
        )
        for mode, graph in program.graphs.items()
    }
    saved = SavedProgram(
        version=1,
        inputs=encode_inputs(captured.inputs),
        graphs=graphs,
        first=dict(captured.first),
        frozen={_FLAGS[mode]: dict(flags) for mode, flags in captured.frozen.items()},
        deciders=list(captured.deciders),
        notes=list(captured.notes),
        refused=dict(captured.refused),
        records=list(captured.records),
        passes=[replace(done, args=encode_table(done.args)) for done in captured.passes],
        shrinks=list(captured.shrinks),
        traces=list(traces),
        tensors=writer.records,
        modules=modules,
    )
    return saved, writer.data


def decode_program(saved: SavedProgram, data: Mapping[str, torch.Tensor]) -> Program:
    """Return the Program of a document.

    Args:
        saved: from a file.
        data: the file's tensors by key; they become the Program's.

    Raises:
        FormatError: says what does not fit.
    """
    tree = decode_tree(saved.modules, decode_tensors(saved.tensors, data))
    graphs = {mode: _graph(mode, graph, tree, saved.traces) for mode, graph in saved.graphs.items()}
    if set(graphs) not in ({BOTH}, {TRAIN, EVAL}):
        raise FormatError("graphs: there must be one for both modes, or one for train and for eval")
    if BOTH not in graphs and not saved.deciders:
        raise FormatError("deciders: with two graphs some training flag must choose")
    outputs = {
        mode: _at(f"graphs.{mode}.outputs", decode_nesting, graph.outputs)
        for mode, graph in saved.graphs.items()
    }
    inputs = _at("inputs", decode_inputs, saved.inputs)
    for mode, graph in graphs.items():
        _check_leaves(mode, graph, len(inputs.inputs), outputs[mode].tree.num_leaves)
    _check_first(saved.first, tree)
    paths = {name for name, _ in tree.named_modules(remove_duplicate=False)}
    unknown = [name for name in (*saved.deciders, *_flagged(saved)) if name not in paths]
    if unknown:
        raise FormatError(f"frozen, deciders: there is no module {unknown[0][:200]!a}")
    captured = Captured(
        inputs=inputs,
        outputs=outputs,
        first=saved.first,
        kind=kind_of(tree),
        frozen={mode: saved.frozen[name] for mode, name in _FLAGS.items()},
        deciders=tuple(saved.deciders),
        records=tuple(saved.records),
        passes=tuple(replace(done, args=decode_table(done.args)) for done in saved.passes),
        shrinks=tuple(saved.shrinks),
        refused=saved.refused,
        notes=tuple(saved.notes),
    )
    return Program.assemble(tree, graphs, captured)


def _at(place: str, decode: Any, data: Any) -> Any:
    try:
        return decode(data)
    except FormatError as error:
        raise FormatError(f"{place}: {error}") from error


def _graph(mode: str, saved: SavedGraph, tree: nn.Module, traces: list[str]) -> fx.Graph:
    return _at(f"graphs.{mode[:40]}", lambda nodes: decode_graph(nodes, tree, traces), saved.nodes)


def _flagged(saved: SavedProgram) -> list[str]:
    if set(saved.frozen) != set(_FLAGS.values()):
        raise FormatError("frozen: give the flags for train and for eval")
    return [name for flags in saved.frozen.values() for name in flags]


def _check_leaves(mode: str, graph: fx.Graph, inputs: int, outputs: int) -> None:
    """Check that a graph takes and gives as many values as the document says."""
    nodes = list(graph.nodes)
    taken = sum(node.op == "placeholder" for node in nodes)
    given: Any = nodes[-1].args[0]
    if taken != inputs or len(given) != outputs:
        raise FormatError(
            f"graphs.{mode}: it takes {taken} and gives {len(given)} values, but the document has "
            f"{inputs} inputs and {outputs} outputs"
        )


def _check_first(first: Mapping[str, str], tree: nn.Module) -> None:
    """Check that the names of parameters are those of the tree."""
    owners = dict(tree.named_modules(remove_duplicate=False))
    found: dict[str, Any] = {}
    for name in first:
        path, _, attribute = name.rpartition(".")
        if path not in owners:
            raise FormatError(f"first: there is no module {path[:200]!a}")
        found[name] = raw_parameter(owners[path], attribute)
        if found[name] is None:
            raise FormatError(f"first: there is no parameter {name[:200]!a}")
    for name, other in first.items():
        if first.get(other) != other or found[name] is not found[other]:
            raise FormatError(f"first: {name[:200]!a} is no other name of {other[:200]!a}")
    known = {id(parameter) for parameter in found.values()}
    for name, parameter in tree.named_parameters():
        if id(parameter) not in known:
            raise FormatError(f"first: the parameter {name[:200]!a} is missing")
