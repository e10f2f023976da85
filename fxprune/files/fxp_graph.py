"""Graphs of a .fxp: nodes as plain data, and checks of all that ends up in generated code.

A file names a function, never a module to import: torch's operators that compute, and a short
table. Others are refused when a Program is written and when it is read.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.fx.node import Node
from torch.nn import functional
from torch.overrides import get_overridable_functions

from fxprune.errors import FormatError
from fxprune.files.fxp_document import SavedNode
from fxprune.files.fxp_values import decode_dtype, decode_value, encode_dtype, encode_value
from fxprune.program import PATH, VALUE, count_batch, enter_autocast, exit_autocast

_BY = "fxprune.by"
_TRACE = "stack_trace"


def encode_graph(graph: fx.Graph, root: nn.Module, traces: dict[str, int]) -> list[SavedNode]:
    """Return a graph's nodes as data; `traces` are numbers of stack traces, and new ones are added.

    A FormatError names the node that calls what a .fxp cannot hold, or has such a constant.
    """
    saved: list[SavedNode] = []
    for node in graph.nodes:
        try:
            saved.append(_encode(node, root, traces))
        except FormatError as error:
            raise FormatError(f"node {node.name}: {error}") from error
    return saved


def _encode(node: Node, root: nn.Module, traces: dict[str, int]) -> SavedNode:
    if node.op == "call_module":
        kind = type(root.get_submodule(str(node.target))).__name__
        raise FormatError(
            f"it calls the layer {str(node.target)!r} ({kind}), whose code a .fxp cannot hold; "
            "capture the model with args="
        )
    target: str | None = str(node.target)
    if node.op in ("call_function", "output"):
        target = None if node.op == "output" else name_of(node.target)
    elif node.op == "call_method" and not has_method(target):
        raise FormatError(f"the method {target!r} is not among those that a .fxp may call")
    meta = node.meta
    trace = meta.get(_TRACE)
    shape, dtype = meta.get(VALUE, (None, None))
    if shape is not None and node.op == "get_attr":
        # A pass may have changed the tensor since capture.
        shape = _attribute(root, str(node.target)).shape
    return SavedNode(
        op=node.op,
        name=node.name,
        target=target,
        args=[encode_value(arg) for arg in node.args],
        kwargs={key: encode_value(value) for key, value in node.kwargs.items()},
        path=meta.get(PATH),
        shape=None if shape is None else list(shape),
        dtype=None if dtype is None else encode_dtype(dtype),
        trace=None if trace is None else traces.setdefault(trace, len(traces)),
        by=meta.get(_BY),
    )


def decode_graph(saved: list[SavedNode], root: nn.Module, traces: list[str]) -> fx.Graph:
    """Return the graph that `encode_graph` made `saved` of; it reads the tree `root`."""
    graph = fx.Graph()
    named: dict[str, Node] = {}

    def find(name: str) -> Node:
        if name not in named:
            raise FormatError(f"there is no node {name[:100]!a} before it")
        return named[name]

    for at, node in enumerate(saved):
        try:
            if at and saved[at - 1].op == "output":
                raise FormatError("it stands after the output")
            _add(graph, node, root, traces, find)
        except FormatError as error:
            raise FormatError(f"node {at} ({node.name[:100]!a}): {error}") from error
        named[node.name] = next(iter(reversed(graph.nodes)))
    if not saved or saved[-1].op != "output":
        raise FormatError("the last node is no output")
    return graph


def _add(
    graph: fx.Graph,
    saved: SavedNode,
    root: nn.Module,
    traces: list[str],
    find: Callable[[str], Node],
) -> None:
    args = tuple(decode_value(arg, find) for arg in saved.args)
    kwargs = {key: decode_value(value, find) for key, value in saved.kwargs.items()}
    target = _target(saved, root, args, kwargs)
    _check_identifier(saved.name)
    node = graph.create_node(saved.op, target, args, kwargs, saved.name)
    # fx gives another name to what stands twice, or is no name of its own graphs.
    if node.name != saved.name:
        raise FormatError("this name stands twice, or is none that a node may have")
    node.meta = _meta(saved, root, traces)


def _target(
    saved: SavedNode, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    target = saved.target or ""
    if saved.op == "call_function":
        function = function_of(target)
        _check_call(function, args, kwargs)
        return function
    if saved.op == "call_method":
        if not has_method(target) or not args or not isinstance(args[0], Node):
            raise FormatError(f"{target[:100]!a} is not among the methods that a .fxp may call")
        _check_names(kwargs)
        return target
    if saved.op == "output":
        if len(args) != 1 or kwargs or target or not isinstance(args[0], (tuple, list)):
            raise FormatError("an output has one tuple, and no target")
        return "output"
    if args or kwargs:
        raise FormatError(f"a {saved.op[:40]} has no arguments")
    if saved.op == "placeholder":
        _check_identifier(target)
        return target
    if saved.op == "get_attr":
        _attribute(root, target)
        return target
    raise FormatError(f"there is no kind of node {saved.op[:40]!a}")


def _meta(saved: SavedNode, root: nn.Module, traces: list[str]) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if saved.path is not None:
        meta[PATH] = saved.path
    if saved.trace is not None:
        if saved.trace >= len(traces):
            raise FormatError(f"there is no stack trace {saved.trace}")
        meta[_TRACE] = traces[saved.trace]
    if (saved.shape is None) is not (saved.dtype is None):
        raise FormatError("it has a shape without a dtype, or a dtype without a shape")
    if saved.shape is not None and saved.dtype is not None:
        shape = tuple(saved.shape)
        meta[VALUE] = (shape, decode_dtype(saved.dtype))
        if saved.op == "get_attr" and shape != tuple(_attribute(root, saved.target or "").shape):
            raise FormatError(f"it says {shape}, and the tensor has another shape")
    if saved.by is not None:
        meta[_BY] = saved.by
    return meta


def _attribute(root: nn.Module, target: str) -> Any:
    """Return what a graph reads: a tensor of the tree, a training flag, or the device."""
    path, _, name = target.rpartition(".")
    owner: Any = root
    for part in path.split(".") if path else ():
        owner = owner._modules.get(part)
        if owner is None:
            raise FormatError(f"there is no module {path[:200]!a}")
    if name == "training":
        return owner.training
    if target == "device":
        return torch.device("cpu")
    tensor = owner._parameters.get(name)
    tensor = owner._buffers.get(name) if tensor is None else tensor
    if tensor is None:
        raise FormatError(f"there is no tensor {target[:200]!a}")
    return tensor


def _check_identifier(name: str) -> None:
    plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    if not plain or name == "self" or name.startswith("__"):
        raise FormatError(f"{name[:100]!a} is no name for a variable")


_NAME = re.compile(r"aten\.(\w{1,100})\.(\w{1,100})", re.ASCII)

# These touch files, other tensors' memory, or are torch's own tests.
_DENIED = re.compile(r"from_file|set_?|_print|_test_.*|_foobar|record_stream|.*_unsafe|_pin_memory")
# Of operators with a leading underscore, those that export's graphs have beside torch's core ones;
# the first three are its guards of casts and sizes that depend on values.
_PRIVATE_NAMES = """
    _assert_async _assert_scalar _assert_tensor_metadata
    _cast_Float _cdist_forward _conj _convolution _convolution_mode _embedding_bag_forward_only
    _fft_c2c _fused_rms_norm _grouped_mm _native_batch_norm_legit_functional
    _native_multi_head_attention _neg_view _pack_padded_sequence _pad_packed_sequence _reshape_alias
    _safe_softmax _scaled_dot_product_attention_math _scaled_dot_product_efficient_attention
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
    _shape_as_tensor _thnn_fused_gru_cell _thnn_fused_lstm_cell _transformer_encoder_layer_fwd
    _trilinear _unsafe_index _unsafe_index_put _unsafe_view _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d _weight_norm _weight_norm_interface
    __and__ __lshift__ __or__ __rshift__ __xor__
"""
_PRIVATE = frozenset(_PRIVATE_NAMES.split())
_OF_ONE = "abs invert neg not_ pos"
_OF_TWO = (
    "add and_ eq floordiv ge getitem gt is_ le lshift lt mod mul ne or_ pow rshift sub truediv xor"
)


def _table(prefix: str, owner: Any, names: str, count: int) -> dict[str, tuple[Any, int]]:
    return {
        f"{prefix}{name}": (getattr(owner, f"{prefix}{name}".rpartition(".")[2]), count)
        for name in names.split()
    }


# By name in the file: the function, and how many positional arguments it takes.
_TABLE: Mapping[str, tuple[Any, int]] = {
    **_table("operator.", operator, _OF_ONE, 1),
    **_table("operator.", operator, _OF_TWO, 2),
    **_table("math.", math, "ceil floor trunc", 1),
    **_table("torch.sym_", torch, "float int not sqrt sum", 1),
    **_table("torch.sym_", torch, "max min", 2),
    **_table("torch.sym_", torch, "ite", 3),
    "fxprune.count_batch": (count_batch, 2),
    "torch.Tensor.numel": (torch.Tensor.numel, 1),
    "torch.is_grad_enabled": (torch.is_grad_enabled, 0),
    "torch.set_grad_enabled": (torch._C._set_grad_enabled, 1),
    "getattr": (getattr, 2),
    "fxprune.enter_autocast": (enter_autocast, 3),
    "fxprune.exit_autocast": (exit_autocast, 1),
}
_NAMES: Mapping[Any, str] = {function: name for name, (function, _) in _TABLE.items()}
# What a graph may read of a value that is no part of the tree.
_ATTRIBUTES = frozenset({"T", "device", "dtype", "imag", "layout", "mT", "ndim", "real", "shape"})


def name_of(target: Any) -> str:
    """Return the name under which a .fxp calls the target of a node, if it is an allowed one.

    Example:
        >>> name_of(torch.ops.aten.relu.default), name_of(operator.getitem)
        ('aten.relu.default', 'operator.getitem')
    """
    if isinstance(target, OpOverload):
        name = f"{target.namespace}.{target._schema.name.rpartition('::')[2]}"
        full = f"{name}.{target._overloadname}"
        if _NAME.fullmatch(full) and _is_allowed(target):
            return full
    elif isinstance(target, Callable):
        name = _NAMES.get(target) or traced_names().get(target)
        if name is not None:
            return name
    raise FormatError(f"{target} is not among the operators that a .fxp may hold")


def function_of(name: str) -> Any:
    """Return the function of a name in a .fxp, if it is allowed and this torch has it."""
    if name in _TABLE:
        return _TABLE[name][0]
    if name in traced_functions():
        return traced_functions()[name]
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise FormatError(f"{name[:100]!a} is not among the operators that a .fxp may hold")
    try:
        found: Any = getattr(getattr(torch.ops.aten, parts[1]), parts[2])
    except (AttributeError, RuntimeError):
        found = None
    if not isinstance(found, OpOverload) or not _is_allowed(found):
        raise FormatError(f"{name} is not among torch's operators that a .fxp may hold")
    return found


def _check_call(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check that a function takes these arguments, as far as its schema tells."""
    if not isinstance(target, OpOverload):
        _check_function(target, args, kwargs)
        return
    schema = target._schema
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    if len(args) > len(positional):
        raise FormatError(f"{target} is given {len(args)} arguments and takes {len(positional)}")
    given = dict(zip((argument.name for argument in positional), args, strict=False))
    known = {argument.name: argument for argument in schema.arguments}
    wrong = [name for name in kwargs if name in given or name not in known]
    if wrong:
        raise FormatError(f"{target} takes no argument {wrong[0][:60]!a} here")
    given |= kwargs
    for name, argument in known.items():
        if name in given:
            _check_argument(target, name, str(argument.type), given[name])
        elif not argument.has_default_value():
            raise FormatError(f"{target} is not given its argument {name}")


def _check_names(kwargs: Mapping[str, Any]) -> None:
    """Check the names of keyword arguments, which stand in generated code."""
    for name in kwargs:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise FormatError(f"{name[:60]!a} is no name of an argument")


def _check_function(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    _check_names(kwargs)
    if target not in _NAMES:
        return
    if len(args) != _TABLE[_NAMES[target]][1] or kwargs:
        raise FormatError(f"{_NAMES[target]} is given {len(args)} arguments")
    if target is getattr and (args[1] not in _ATTRIBUTES or not isinstance(args[0], Node)):
        raise FormatError(f"a graph may read {', '.join(sorted(_ATTRIBUTES))} of a value alone")


def _check_argument(target: OpOverload, name: str, kind: str, value: Any) -> None:
    """Check an argument that is a tensor, which passes take for a node or a number."""
    if "Tensor" not in kind:
        return
    if "List" in kind:
        fits = value is None or (
            isinstance(value, (list, tuple)) and all(isinstance(x, Node | None) for x in value)
        )
    else:
        fits = isinstance(value, Node | int | float | complex) or value is None
    if not fits:
        raise FormatError(f"the argument {name} of {target} is a {kind}")


def _is_allowed(target: OpOverload) -> bool:
    name = target._schema.name.rpartition("::")[2]
    if _DENIED.fullmatch(name) or not _is_dispatched(target):
        return False
    return not name.startswith("_") or torch.Tag.core in target.tags or name in _PRIVATE


def _is_dispatched(target: OpOverload) -> bool:
    """Tell whether it is an operator on tensors; TorchScript's own functions write files, too."""
    schema = target._schema
    try:
        torch._C._dispatch_find_schema_or_throw(schema.name, schema.overload_name)
    except RuntimeError:
        return False
    return True


# Graphs of symbolic_trace call functions and methods by name: those that torch lets others
# override, since these compute with tensors. The following do more than that.
_DENIED_FUNCTIONS = re.compile(
    r"_.*|apply_|autocast|backward|.*data_ptr|fbgemm_.*|map2?_|module_load|numpy|pin_memory|"
    r"record_stream|register_.*|retain_grad|set_|share_memory_|storage.*|tolist|untyped_storage"
)
# These compute as well, and torch does not let others override them.
_ALSO = {
    torch: "arange empty eye full linspace ones rand randint randn randperm tensor zeros",
    functional: (
        "celu_ elu_ hardsigmoid hardswish hardtanh_ leaky_relu_ relu_ rrelu_ selu_ sigmoid tanh "
        "threshold_"
    ),
    torch.Tensor: "",
}


@cache
def traced_functions() -> Mapping[str, Any]:
    """Return the functions by name, as `torch.add`, `torch.Tensor.view`."""
    places: dict[str, Any] = {
        "torch": torch,
        "torch.nn.functional": functional,
        "torch.Tensor": torch.Tensor,
    }
    known = get_overridable_functions()
    found: dict[str, Any] = {}
    for place, owner in places.items():
        others = set(_ALSO[owner].split())
        for name in sorted(others | set(dir(owner))):
            function: Any = getattr(owner, name, None)
            if name in others or (
                not _DENIED_FUNCTIONS.fullmatch(name) and _is_in(function, known[owner])
            ):
                found[f"{place}.{name}"] = function
    return found


@cache
def traced_names() -> Mapping[Any, str]:
    """Return the names by function."""
    return {function: name for name, function in traced_functions().items()}


def has_method(name: str) -> bool:
    """Tell whether a graph may call a method of a tensor."""
    return f"torch.Tensor.{name}" in traced_functions()


def _is_in(function: Any, known: list[Any]) -> bool:
    # Some of torch's objects compare to others as arrays do.
    return callable(function) and any(function is other for other in known)
