"""A writer for each format of export: .pt2 and .onnx through torch.export, .safetensors, .fxp."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tag, fx
from torch._ops import OpOverload
from torch.fx.node import Node

from fxprune.errors import FormatError
from fxprune.files.fxp import write_fxp
from fxprune.program import Program, example_of
from fxprune.support import quiet_export, sink, write_tensor_file

SOURCE = ".py"  # two files, so that it is no writer of one
_BATCH = 4  # neither 0 nor 1, which torch.export takes for constants; even, for models that halve
_MOST_ONNX_BYTES = 2**31 - 1  # what protobuf can hold


def check_format(suffix: str) -> None:
    """Raise FormatError if a format, as ".pt2", is unknown or what writes it is not installed."""
    if suffix not in (*WRITERS, SOURCE):
        known = ", ".join((*WRITERS, SOURCE))
        raise FormatError(f"{suffix or 'no suffix'!r} is no format to export to; there are {known}")
    if suffix == ".onnx" and importlib.util.find_spec("onnxscript") is None:
        raise FormatError(
            "torch writes .onnx with onnxscript, which is not installed; run "
            "`pip install fxprune[onnx]`"
        )


def write_pt2(program: Program, path: Path) -> None:
    """Write the current mode's graph and the weights as torch.export.save does."""
    with quiet_export():
        exported = _export(program)
        with sink(path) as file:
            torch.export.save(exported, file)


def write_onnx(program: Program, path: Path) -> None:
    """Write the current mode as one .onnx file; raises FormatError where weights take 2 GiB."""
    size = sum(tensor.nbytes for tensor in program.state_dict().values())
    if size > _MOST_ONNX_BYTES:
        raise FormatError(
            f"the weights have {size / 2**30:.1f} GiB, and one .onnx file holds less than 2; "
            "export to .pt2 or .safetensors"
        )
    with quiet_export():
        exported = _export(program)
        names = _by_argument(program, _symbols)
        written: Any = torch.onnx.export(exported, dynamo=True, dynamic_shapes=names, verbose=False)
        written.save(str(path), external_data=False)


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors by key as a safetensors file, in which no two keys may share memory.

    The source class of a Program wants every key, so a tied parameter is written under each name.
    """
    seen: set[int] = set()
    state: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        where = tensor.untyped_storage().data_ptr()
        state[key] = tensor.clone() if where in seen else tensor
        state[key] = state[key].contiguous()
        seen.add(where)
    write_tensor_file(state, path, {"format": "pt"})


WRITERS: Mapping[str, Callable[[Program, Path], None]] = {
    ".pt2": write_pt2,
    ".safetensors": lambda program, path: write_tensors(program.state_dict(), path),
    ".onnx": write_onnx,
    ".fxp": write_fxp,
}


def _export(program: Program) -> torch.export.ExportedProgram:
    """Export a private copy in the program's current mode, its symbolic dimensions dynamic."""
    args, kwargs = example_of(program, batch=_BATCH)
    shapes = _by_argument(program, lambda size: torch.export.Dim.AUTO)
    source = copy.deepcopy(program)
    for graph in source.graphs.values():
        graph.eliminate_dead_code(_has_effect)
        _drop_empty_regions(graph)
    source.recompile()
    return torch.export.export(source, args, kwargs, dynamic_shapes=shapes, strict=False)


def _drop_empty_regions(graph: fx.Graph) -> None:
    """Drop regions of no_grad without values: torch.export.load does not read them."""
    ends = [node for node in graph.nodes if node.target is torch._C._set_grad_enabled]
    for end in ends:
        begin = end.prev
        if begin in ends and isinstance(end.args[0], Node) and end.args[0] is begin.prev:
            graph.erase_node(end)
            graph.erase_node(begin)


def _has_effect(node: Node) -> bool:
    """Tell whether a node does anything where nothing reads its value."""
    if node.op == "get_attr":
        return False
    if not isinstance(node.target, OpOverload):
        return True
    return node.target._schema.is_mutable or Tag.nondeterministic_seeded in node.target.tags


def _by_argument(program: Program, mark: Callable[[str], Any]) -> dict[str, Any]:
    """Return what `mark` makes of each symbolic dimension, by argument name and dimension."""
    spec = program.captured.inputs
    leaves = [
        {at: mark(size) for at, size in enumerate(leaf.shape) if isinstance(size, str)} or None
        for leaf in spec.inputs
    ]
    args, kwargs = spec.nesting.unflatten(leaves)
    return dict(zip(spec.names, args, strict=True)) | dict(kwargs)


def _symbols(size: str) -> str | Any:
    # A multiple of a symbol has no name of its own.
    return torch.export.Dim.AUTO if "*" in size else size
