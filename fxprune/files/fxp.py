"""All of a Program in one safetensors file, which is read without running anything in it.

The tensors are the file's tensors, each piece of memory once. The rest, graphs and module tree
included, is a JSON document in the file's metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import fx, nn

from fxprune.errors import FormatError
from fxprune.files.fxp_document import (
    SavedGraph,
    SavedModule,
    SavedProgram,
    SavedTensor,
    decode_inputs,
    decode_table,
    encode_inputs,
    encode_table,
    parse_document,
    write_document,
)
from fxprune.files.fxp_graph import decode_graph, encode_graph
from fxprune.files.fxp_values import decode_dtype, decode_nesting, encode_dtype, encode_nesting
from fxprune.program import (
    BOTH,
    EVAL,
    TRAIN,
    Captured,
    Program,
    TreeModule,
    check_program,
    check_whole,
    kind_of,
    raw_parameter,
)
from fxprune.support import (
    MOST_HEADER,
    PathLike,
    check_is_file,
    header_size,
    read_safely,
    replacing,
    write_tensor_file,
)
from fxprune.verification import check_invariants

_KEY = "fxprune"


def save(program: Program, path: PathLike) -> Path:
    """Write a Program as one file, to be read by `load`.

    The file is a safetensors file: its tensors are those of the Program, each piece of memory once,
    and its metadata holds the graphs, the inputs, the tree and what the rules did, as JSON.

    Args:
        program: dense, masked or finalized; not changed.
        path: the file to write, by custom `net.fxp`; an earlier one is replaced.

    Returns:
        The path.

    Raises:
        FormatError: the Program holds what such a file cannot, or it cannot be written there; an
            earlier file is untouched.
        PassTypeError: it is no Program.

    Example:
        >>> import fxprune, tempfile, torch
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(program, Path(folder, "net.fxp")))
        >>> print(again.inputs, list(again.state_dict()))
        input: float32[batch, 3] ['weight', 'bias']
    """
    check_program(program, "save")
    target = Path(path)
    check_whole(program, target)
    with replacing(target) as temporary:
        try:
            write_fxp(program, temporary)
        except FormatError as error:
            raise FormatError(f"{target}: {error}") from error
    return target


def write_fxp(program: Program, path: Path) -> None:
    """Write a Program to a file that nobody else reads yet; see `save`."""
    saved, tensors = encode_program(program)
    text = write_document(saved)
    if len(text) > MOST_HEADER // 2:  # the header escapes its quotes
        raise FormatError(f"the graphs take {len(text):,} bytes, more than a .fxp can hold")
    # One key alone: safetensors writes several in any order.
    write_tensor_file(tensors, path, {_KEY: text})


def load(path: PathLike) -> Program:
    """Read a Program that `save` wrote; a file may be from any source, and nothing in it is run.

    A file can name only operators of torch's that compute, and classes that are already imported.

    Args:
        path: a .fxp file.

    Returns:
        The Program, on the CPU, in the mode that it was saved in.

    Raises:
        FormatError: the file is missing, damaged, or holds what no Program has; says where.
    """
    source = Path(path)
    with read_safely(source, _damage):
        check_is_file(source, ".fxp")
        return _read(source)


def _damage(error: Exception) -> str:
    return f"this .fxp file is damaged, and nothing in it was run: {str(error)[:200]!a}"


def _read(source: Path) -> Program:
    with source.open("rb") as file:
        try:
            header_size(file)
        except FormatError as error:
            raise FormatError(_damage(error)) from error
    with safe_open(source, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        if _KEY not in metadata:
            raise FormatError(
                "this safetensors file holds no Program; write one with fxprune.save, or give the "
                "file as weights"
            )
        saved = parse_document(metadata[_KEY])
        # Copies: the tensors of an open file are one piece of memory, which the disk may change.
        tensors: dict[str, Any] = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    program = decode_program(saved, tensors)
    check_invariants(program, "load")
    return program


_FLAGS = {True: "train", False: "eval"}


def encode_program(program: Program) -> tuple[SavedProgram, dict[str, torch.Tensor]]:
    """Return a Program as a document, and the tensors that it names, shared where they fit."""
    captured = program.captured
    writer = TensorWriter(program)
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
    """Return the Program of a document; the tensors in the file become its own."""
    tree = decode_tree(saved.modules, decode_tensors(saved.tensors, data))
    graphs = {
        mode: _at(f"graphs.{mode[:40]}", decode_graph, graph.nodes, tree, saved.traces)
        for mode, graph in saved.graphs.items()
    }
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
    if set(saved.frozen) != set(_FLAGS.values()):
        raise FormatError("frozen: give the flags for train and for eval")
    flagged = [*saved.deciders, *(name for flags in saved.frozen.values() for name in flags)]
    paths = {name for name, _ in tree.named_modules(remove_duplicate=False)}
    if unknown := [name for name in flagged if name not in paths]:
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


def _at(place: str, decode: Callable[..., Any], *data: Any) -> Any:
    try:
        return decode(*data)
    except FormatError as error:
        raise FormatError(f"{place}: {error}") from error


def _check_leaves(mode: str, graph: fx.Graph, inputs: int, outputs: int) -> None:
    """Check that a graph takes and gives as many values as the document says."""
    taken = len(graph.find_nodes(op="placeholder"))
    given: Any = graph.output_node().args[0]
    if taken != inputs or len(given) != outputs:
        raise FormatError(
            f"graphs.{mode}: it takes {taken} and gives {len(given)} values, but the document has "
            f"{inputs} inputs and {outputs} outputs"
        )


def _check_first(first: Mapping[str, str], tree: nn.Module) -> None:
    """Check that the names of parameters are those of the tree."""
    owners = dict(tree.named_modules(remove_duplicate=False))
    named: dict[str, Any] = {}
    for name in first:
        path, _, attribute = name.rpartition(".")
        if path not in owners:
            raise FormatError(f"first: there is no module {path[:200]!a}")
        named[name] = raw_parameter(owners[path], attribute)
        if named[name] is None:
            raise FormatError(f"first: there is no parameter {name[:200]!a}")
    for name, other in first.items():
        if first.get(other) != other or named[name] is not named[other]:
            raise FormatError(f"first: {name[:200]!a} is no other name of {other[:200]!a}")
    known = {id(parameter) for parameter in named.values()}
    for name, parameter in tree.named_parameters():
        if id(parameter) not in known:
            raise FormatError(f"first: the parameter {name[:200]!a} is missing")


_MOST_LEVELS = 200
_MOST_PATHS = 1_000_000
_TAKEN = frozenset(dir(TreeModule("")))


def encode_tree(root: nn.Module, kind: str, writer: TensorWriter) -> list[SavedModule]:
    """Return a tree's modules, each after its children; the root, a `kind`, is the last."""
    saved: list[SavedModule] = []
    numbers: dict[int, int] = {}

    def encode(module: nn.Module, kind: str, path: str) -> int:
        if id(module) in numbers:
            return numbers[id(module)]
        # Tensors are taken in the order of state_dict: a module's own before those of its children.
        parameters = _tensors(module._parameters, path, writer)
        buffers = _tensors(module._buffers, path, writer)
        children: dict[str, int | None] = {}
        for name, child in module._modules.items():
            inner = f"{path}{name}"
            _check_name(inner, name)
            if child is not None and not isinstance(child, TreeModule):
                raise FormatError(
                    f"the graph calls a nested graph, {inner!r}, which a .fxp cannot hold"
                )
            children[name] = None if child is None else encode(child, kind_of(child), f"{inner}.")
        numbers[id(module)] = len(saved)
        saved.append(
            SavedModule(
                kind=kind,
                training=module.training,
                parameters=parameters,
                buffers=buffers,
                unsaved=[name for name in buffers if name in module._non_persistent_buffers_set],
                children=children,
            )
        )
        return numbers[id(module)]

    encode(root, kind, "")
    return saved


def _tensors(
    named: Mapping[str, torch.Tensor | None], path: str, writer: TensorWriter
) -> dict[str, int | None]:
    for name in named:
        _check_name(f"{path}{name}", name)
    return {name: None if tensor is None else writer.add(tensor) for name, tensor in named.items()}


def decode_tree(saved: list[SavedModule], tensors: list[torch.Tensor]) -> nn.Module:
    """Return the tree that `encode_tree` made `saved` of; its tensors are given by number."""
    _check_size(saved)
    modules: list[nn.Module] = []
    for at, module in enumerate(saved):
        try:
            modules.append(_decode_module(module, tensors, modules))
        except FormatError as error:
            raise FormatError(f"modules[{at}]: {error}") from error
    _check_all_used("modules", len(saved) - 1, (m.children for m in saved))
    named = (numbers for m in saved for numbers in (m.parameters, m.buffers))
    _check_all_used("tensors", len(tensors), named)
    return modules[-1]


def _decode_module(
    saved: SavedModule, tensors: list[torch.Tensor], before: list[nn.Module]
) -> TreeModule:
    shell = TreeModule(saved.kind)
    shell.training = saved.training
    shell._parameters = {
        name: _parameter(name, _lookup(name, number, tensors))
        for name, number in saved.parameters.items()
    }
    shell._buffers = {
        name: _lookup(name, number, tensors) for name, number in saved.buffers.items()
    }
    shell._modules = {
        name: _lookup(name, number, before) for name, number in saved.children.items()
    }
    names = [*saved.parameters, *saved.buffers, *saved.children]
    if len(set(names)) < len(names):
        raise FormatError("one name stands for two things")
    for name in names:
        _check_name(name, name)
    if not set(saved.unsaved) <= set(saved.buffers):
        raise FormatError("unsaved: not all of these are buffers")
    shell._non_persistent_buffers_set = set(saved.unsaved)
    return shell


def _lookup(name: str, number: int | None, things: list[Any]) -> Any:
    if number is not None and number >= len(things):
        raise FormatError(f"{name[:100]!a}: there is no number {number} before it")
    return None if number is None else things[number]


def _parameter(name: str, tensor: torch.Tensor | None) -> nn.Parameter | None:
    if tensor is not None and not isinstance(tensor, nn.Parameter):
        raise FormatError(f"{name[:100]!a}: this tensor is no parameter")
    return tensor


def _check_size(saved: list[SavedModule]) -> None:
    """Check that a walk over all paths ends: shared modules can make the paths very many."""
    if not saved:
        raise FormatError("modules: there is no module")
    sizes: list[int] = []
    levels: list[int] = []
    for at, module in enumerate(saved):
        inner = [n for n in module.children.values() if n is not None and n < at]
        own = 1 + len(module.parameters) + len(module.buffers)
        sizes.append(own + sum(sizes[n] for n in inner))
        levels.append(1 + max((levels[n] for n in inner), default=0))
        if sizes[-1] > _MOST_PATHS or levels[-1] > _MOST_LEVELS:
            raise FormatError(
                f"modules[{at}]: the tree has more than {_MOST_PATHS:,} names or {_MOST_LEVELS} "
                "levels"
            )


def _check_all_used(what: str, count: int, named: Iterable[Mapping[str, int | None]]) -> None:
    used = {number for numbers in named for number in numbers.values()}
    left = next((number for number in range(count) if number not in used), None)
    if left is not None:
        raise FormatError(f"{what}[{left}]: nothing in the tree holds it")


def _check_name(full: str, name: str) -> None:
    """Check a name that stands in generated code and must not hide an attribute of a module."""
    if name in _TAKEN or name.startswith("__"):
        raise FormatError(f"{full[:200]!a}: {name[:100]!a} is reserved by nn.Module")
    if not name or not name.isprintable() or any(mark in name for mark in ".\\\"'{}"):
        raise FormatError(f"{full[:200]!a}: a name has no dots, quotes, backslashes or braces")


_KINDS = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
)
# The format has no complex numbers everywhere: they are stored as pairs of real ones.
_PAIRS = {torch.complex64: torch.float32, torch.complex128: torch.float64}


class TensorWriter:
    """Collects the tensors of a Program; those that are the same view of memory are written once.

    Raises FormatError where a tensor is of a kind that safetensors does not hold, or is another
    view of memory that a tensor before it looks at.
    """

    def __init__(self, program: nn.Module) -> None:
        self.records: list[SavedTensor] = []
        self.data: dict[str, torch.Tensor] = {}  # what the file holds
        self._numbers: dict[int, int] = {}
        self._keys: dict[_View, str] = {}
        named = dict(program.named_parameters(remove_duplicate=False))
        for name, tensor in {
            **named,
            **dict(program.named_buffers(remove_duplicate=False)),
        }.items():
            _check(name, tensor)
            self._keys.setdefault(_view_of(tensor), name)
        spans = sorted(
            (view.memory, view.begin, view.end, name)
            for view, name in self._keys.items()
            if view.begin < view.end
        )
        for (memory, _, end, name), (other_memory, begin, _, other) in pairwise(spans):
            if memory == other_memory and begin < end:
                raise FormatError(
                    f"{other!r} and {name!r} are different views of the same memory, which a .fxp "
                    "cannot hold; clone one of them"
                )

    def add(self, tensor: torch.Tensor) -> int:
        """Take a tensor of the Program and return its number, the same for the same object."""
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self.records)
            self.records.append(self._record(tensor))
        return self._numbers[id(tensor)]

    def _record(self, tensor: torch.Tensor) -> SavedTensor:
        key = self._keys[_view_of(tensor)]
        if key not in self.data:
            plain = tensor.detach()
            plain = torch.view_as_real(plain.resolve_conj()) if tensor.dtype in _PAIRS else plain
            self.data[key] = plain.resolve_neg().cpu().contiguous()
        is_permuted = not tensor.is_contiguous() and _is_dense(tensor.shape, tensor.stride())
        return SavedTensor(
            data=key,
            dtype=encode_dtype(tensor.dtype),
            shape=list(tensor.shape),
            parameter=isinstance(tensor, nn.Parameter),
            grad=tensor.requires_grad,
            stride=list(tensor.stride()) if is_permuted else None,
        )


class _View(NamedTuple):
    """The bytes of memory that a tensor looks at, and how."""

    memory: int
    begin: int
    end: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]


def _view_of(tensor: torch.Tensor) -> _View:
    shape, stride = tensor.shape, tensor.stride()
    steps = zip(shape, stride, strict=True)
    extent = 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in steps)
    begin = int(tensor.storage_offset()) * tensor.itemsize
    end = begin + extent * tensor.itemsize
    return _View(tensor.untyped_storage()._cdata, begin, end, tensor.dtype, shape, stride)


def decode_tensors(
    records: list[SavedTensor], data: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """Return the tensors of a file by number; `data`, by key, must be shared with nothing else."""
    used = {record.data for record in records}
    extra = next((key for key in data if key not in used), None)
    if extra is not None:
        raise FormatError(f"tensor {extra[:100]!a}: the document says nothing of it")
    views: dict[str, torch.Tensor] = {}
    tensors: list[torch.Tensor] = []
    for at, record in enumerate(records):
        where = f"tensor {record.data[:100]!a}"
        if record.data not in data:
            raise FormatError(f"tensors[{at}]: there is no {where}")
        key = record.model_dump_json(exclude={"grad", "parameter"})
        if key not in views:
            views[key] = _decode_tensor(record, data[record.data], where)
        tensors.append(_as_recorded(record, views[key], where))
    return tensors


def _as_recorded(record: SavedTensor, tensor: torch.Tensor, where: str) -> torch.Tensor:
    if record.grad and not (tensor.is_floating_point() or tensor.is_complex()):
        raise FormatError(f"{where}: a tensor of {record.dtype} requires no gradient")
    if record.parameter:
        return nn.Parameter(tensor, requires_grad=record.grad)
    # Two records of one piece of memory are two tensors that share it.
    return tensor.detach().requires_grad_(record.grad)


def _decode_tensor(record: SavedTensor, data: torch.Tensor, where: str) -> torch.Tensor:
    dtype = decode_dtype(record.dtype)
    if data.dtype is not _PAIRS.get(dtype, dtype) or (dtype in _PAIRS and data.shape[-1:] != (2,)):
        raise FormatError(f"{where}: the document says {record.dtype}, the data is {data.dtype}")
    tensor = torch.view_as_complex(data) if dtype in _PAIRS else data
    shape, stride = tuple(record.shape), record.stride
    if tuple(tensor.shape) != shape:
        raise FormatError(f"{where}: the document says {shape}, the data is {tuple(tensor.shape)}")
    if stride is None:
        return tensor
    if not _is_dense(shape, tuple(stride)):
        raise FormatError(f"{where}: the strides {stride} do not fit the shape {shape}")
    return torch.empty_strided(shape, stride, dtype=dtype).copy_(tensor)


def _check(name: str, tensor: torch.Tensor) -> None:
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        what = f"a {type(tensor).__name__}"
    elif tensor.layout is not torch.strided or tensor.is_quantized:
        what = f"a {str(tensor.layout).removeprefix('torch.')} or quantized tensor"
    elif tensor.is_meta:
        what = "on the meta device and has no values"
    elif tensor.dtype not in (*_KINDS, *_PAIRS):
        what = f"of {tensor.dtype}"
    else:
        return
    raise FormatError(f"{name!r} is {what}, which a .fxp cannot hold")


def _is_dense(shape: tuple[int, ...] | torch.Size, stride: tuple[int, ...]) -> bool:
    """Tell whether a tensor is a contiguous one with its dimensions in another order."""
    if len(shape) != len(stride) or 0 in shape:
        return False
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size == 1:
            continue
        if step != expected:
            return False
        expected *= size
    return True
