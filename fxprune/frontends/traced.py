"""Graphs of torch.fx.symbolic_trace as Programs, without an example.

Calls of torch's functions and methods, as symbolic_trace records them, to aten operators.

A traced call has no types: `torch.add(x, y)` may add a tensor or a number. A call becomes an
operator only where one overload alone can be meant; else it stays the function that it is.

The functions of torch.nn.functional that are one aten operator, and its arguments.

Layers whose own forward looks at the shape of its input, as functions of their parameters.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Node, map_arg
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.frontends.importing import GraphImporter
from fxprune.frontends.modes import live_devices
from fxprune.program import (
    BOTH,
    PATH,
    Captured,
    HookedMask,
    Nesting,
    Program,
    UnshapedSpec,
    check_names,
    copy_model,
    count_batch,
    ops,
    training_flags,
    tree_of,
    unhook,
)


def is_traced(model: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Tell whether a model is a torch.fx graph that takes inputs, and no Program."""
    if isinstance(model, Program) or not isinstance(model, fx.GraphModule):
        return False
    return any(node.op == "placeholder" and not node.args for node in model.graph.nodes)


def capture_traced(model: fx.GraphModule) -> tuple[Program, tuple[HookedMask, ...]]:
    """Take a traced graph as it is, its torch.nn layers as functions of their parameters.

    Shapes are not known, so nothing can be drawn to check on. A layer that cannot be a function
    stays a call of the layer, and its parameters cannot be masked.

    Args:
        model: what symbolic_trace gave; not changed.

    Returns:
        The Program, and the masks of torch.nn.utils.prune that the model had.

    Raises:
        CaptureError: its arguments are nested, or not plain.
    """
    kind = type(model).__name__
    check_names(model, kind)
    if hasattr(model.graph._codegen, "pytree_info"):
        raise CaptureError(
            f"the graph of {kind} nests its arguments, which needs an example: give args= and "
            "kwargs=, or the ExportedProgram itself"
        )
    source: Any = copy_model(model)
    masks = unhook(source)
    flags = {module: module.training for module in source.modules()}
    frozen = {mode: training_flags(source, mode) for mode in (True, False)}
    for module, flag in flags.items():
        module.training = flag
    first: dict[int, str] = {}
    named = source.named_parameters(remove_duplicate=False)
    names = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    copier = _Copier(source, names)
    outputs = copier.run()
    captured = Captured(
        inputs=_inputs(source.graph, kind),
        outputs={BOTH: outputs},
        first=names,
        kind=kind,
        frozen=frozen,
        refused=copier.refused(),
    )
    program = Program.assemble(copier.tree, {BOTH: copier.graph}, captured)
    live_devices(program)
    return program, masks


def _inputs(graph: fx.Graph, kind: str) -> UnshapedSpec:
    placeholders = graph.find_nodes(op="placeholder")
    names = tuple(str(node.target) for node in placeholders)
    starred = next((name for name in names if name.startswith("*")), None)
    if starred is not None:
        raise CaptureError(
            f"the graph of {kind} takes {starred}, which needs an example: give args= and kwargs="
        )
    defaults = {str(node.target): node.args[0] for node in placeholders if node.args}
    return UnshapedSpec.of(names, defaults)


class _Copier(fx.Tracer):
    """Copies a traced graph; what it records itself is what a layer's own forward calls.

    Args:
        source: a private copy of the traced module; its training flags are changed for a while.
        names: every parameter's name mapped to the first name of the same parameter.
    """

    def __init__(self, source: fx.GraphModule, names: Mapping[str, str]) -> None:
        super().__init__()
        self.root = self.source = source
        self.names = names
        self.tree = tree_of(source)
        self.graph = fx.Graph(tracer_cls=type(self))
        self.importer = GraphImporter(self.tree, names)
        self.tensor_attrs = {}
        self.reads: dict[str, Node] = {}
        self.kept: dict[int, tuple[str, nn.Module]] = {}
        self.path: str | None = None

    def run(self) -> Nesting:
        """Copy all nodes; return how the outputs are nested."""
        copied: dict[Node, Any] = {}
        nesting = Nesting(())
        for node in self.source.graph.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: copied[n])
            if node.op == "output":
                leaves, tree = pytree.tree_flatten(_plain(args[0]))
                nesting = Nesting(pytree.tree_unflatten([0] * len(leaves), tree))
                self.graph.output(tuple(leaves))
            elif node.op == "placeholder":
                copied[node] = self.graph.placeholder(str(node.target).lstrip("*"))
            elif node.op == "call_module":
                copied[node] = self._leaf(str(node.target), args, kwargs)
            else:
                self.path = _path_of(node)
                copied[node] = self.create_node(node.op, node.target, args, kwargs)
        self.graph._tracer_cls = None
        return nesting

    def refused(self) -> dict[str, str]:
        """Return the parameters that are read inside of calls of layers, and why."""
        found: dict[str, str] = {}
        for path, module in self.kept.values():
            reason = (
                f"it is read inside the layer {path!r} ({type(module).__name__}), which a trace "
                "without an example cannot open; capture with args="
            )
            mine = {id(parameter) for parameter in module.parameters()}
            for name, parameter in self.source.named_parameters():
                if id(parameter) in mine:
                    found.setdefault(self.names[name], reason)
        return found

    # What torch.fx calls

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> Node:
        """Add a node to the graph: an aten operator where the call can mean only one."""
        if kind == "get_attr":
            return self._read(target)
        call = None
        if kind == "call_function":
            call = lowered_function(target, args, kwargs)
        elif kind == "call_method":
            call = lowered_method(target, args, kwargs)
        if call is not None:
            kind, target, args, kwargs = "call_function", call[0], call[1], {}
        return self._stamped(self.graph.create_node(kind, target, args, kwargs))

    # Layers

    def _leaf(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Copy a call of a layer: what its forward calls, or else the call itself."""
        module = self.source.get_submodule(path)
        self.path = path
        there, reads = set(self.graph.nodes), dict(self.reads)
        try:
            if _is_open(module):
                return self._opened(path, module, args, kwargs)
        except Exception:  # noqa: BLE001 - forward decides on what it is given, or cannot be recorded
            for node in reversed([node for node in self.graph.nodes if node not in there]):
                self.graph.erase_node(node)
            self.reads = reads
        self._keep(path, module)
        return self._stamped(self.graph.create_node("call_module", path, args, kwargs))

    def _opened(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        norm = NORMS.get(type(module))
        proxies: Any = map_arg((args, kwargs), self._proxy)
        flags = {part: part.training for part in module.modules()}
        made: list[Node] = []
        for name, part in module.named_modules():
            made.append(self._flag(".".join(filter(None, (path, name)))))
            vars(part)["training"] = fx.Proxy(made[-1], self)
        try:
            forward = module.forward if norm is None else norm(module)
            found = self.create_arg(forward(*proxies[0], **proxies[1]))
        finally:
            for part, flag in flags.items():
                vars(part)["training"] = flag
        for node in made:
            if not node.users:
                self.graph.erase_node(node)
        return found

    def _keep(self, path: str, module: nn.Module) -> None:
        """Put the layer itself into the tree, under all its names."""
        self.kept[id(module)] = path, module
        for name, other in self.source.named_modules(remove_duplicate=False):
            if other is module:
                above, _, attribute = name.rpartition(".")
                self.tree.get_submodule(above)._modules[attribute] = module

    # Nodes

    def _read(self, target: str) -> Node:
        path, _, name = target.rpartition(".")
        value = getattr(self.source.get_submodule(path), name, None)
        if not isinstance(value, torch.Tensor):
            raise CaptureError(
                f"the graph reads {target!r}, a {type(value).__name__}, where a Program has "
                "tensors alone; capture with args="
            )
        found = self.importer._attribute(self.source, target)
        if found not in self.reads:
            self.reads[found] = self.graph.create_node("get_attr", found)
        return self.reads[found]

    def _proxy(self, node: Node) -> Any:
        return fx.Proxy(node, self)

    def _flag(self, path: str) -> Node:
        return self.graph.create_node("get_attr", f"{path}.training")

    def _stamped(self, node: Node) -> Node:
        if self.path is not None:
            node.meta[PATH] = self.path
        return node


def _is_open(module: nn.Module) -> bool:
    """Tell whether a layer is one of torch's own, as torch made it."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    own = type(module).__module__.startswith("torch.nn.modules.")
    return own and not any(hooks) and "forward" not in vars(module)


def _path_of(node: Node) -> str | None:
    """Return the module whose forward made a node of a trace."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack and isinstance(stack[-1][0], str) else None


def _plain(value: Any) -> Any:
    """Return nested outputs with plain lists and dicts in the place of torch.fx's own."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}  # pyright: ignore
    if isinstance(value, list):
        return [_plain(part) for part in value]  # pyright: ignore
    if type(value) is tuple:
        return tuple(_plain(part) for part in value)  # pyright: ignore
    return type(value)(*map(_plain, value)) if isinstance(value, tuple) else value  # pyright: ignore


aten = torch.ops.aten
_nn: Any = getattr(torch._C, "_nn")  # noqa: B009 - torch's stubs leave it out

_OTHERS = (torch.Size, tuple, list, dict, str, int, float, bool, slice, PackedSequence)


def lowered_function(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """Return the operator call that a function call means; None where that is not certain.

    Args:
        target: the function.
        args: its positional arguments; nodes stand for values.
        kwargs: its keyword arguments.
    """
    if target in ACTIVATIONS:
        return _activation(target, args, kwargs)
    if target in FUNCTIONS:
        call = FUNCTIONS[target](*args, **kwargs)
        return None if call is None else aten_call(call[0], *call[1])
    name = getattr(target, "__name__", "")
    is_torch = target in (getattr(torch, name, None), getattr(_nn, name, None))
    if not is_torch or not isinstance(target, types.BuiltinFunctionType):
        return None
    return _only_overload(name, args, kwargs)


def lowered_method(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """Return the call that a method call means; None where its object may be no tensor.

    Args:
        name: the method.
        args: the object and the positional arguments.
        kwargs: the keyword arguments.
    """
    method = getattr(torch.Tensor, name, None)
    if not isinstance(method, types.MethodDescriptorType):
        return None
    if any(hasattr(kind, name) for kind in _OTHERS):
        return None
    given = len(args)
    numbers = given > 2 or (given == 2 and type(args[1]) is int)
    packed: tuple[Any, ...] = args
    if numbers and name in _VARIADIC:
        owner, *sizes = args
        packed = (owner, sizes)
    found = _only_overload(name, packed, kwargs)
    if found is not None:
        return found
    return None if kwargs else (method, args)


# Methods that take a list of numbers as well as the numbers.
_VARIADIC = frozenset({"view", "reshape", "permute", "expand", "repeat", "flip", "tile"})


def aten_call(target: Any, *args: Any) -> Call | None:
    """Return a call in the form of torch.export: lists for tuples, no trailing defaults.

    None where a list of numbers is not known, since the operator takes no single number there.
    """
    schema = ops.schema_arguments(target)
    plain: list[Any] = []
    for argument, value in zip(schema, args, strict=False):
        if not _fits(argument, value):
            return None
        plain.append(_listed(argument, value))
    while plain and _is_default(schema[len(plain) - 1], plain[-1]):
        plain.pop()
    return target, tuple(plain)


def _listed(argument: Any, value: Any) -> Any:
    """Return the list that a number stands for where the operator takes a list."""
    if type(value) is int and _kind(argument).startswith("List["):
        return [value] * argument.N
    return list(value) if isinstance(value, (list, tuple)) else value


def _is_default(argument: Any, value: Any) -> bool:
    if not argument.has_default_value() or isinstance(value, Node):
        return False
    default = argument.default_value
    if type(default) is int and isinstance(value, list):
        return value == [default] * len(value)  # pyright: ignore[reportUnknownArgumentType]
    return type(value) is type(default) and value == default


def _kind(argument: Any) -> str:
    kind = str(argument.real_type)
    return kind.removeprefix("Optional[").removesuffix("]") if kind.startswith("Opt") else kind


def _only_overload(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """Return the call of the one overload of an operator that takes these arguments."""
    packet = getattr(aten, name, None)
    if packet is None or not args or not _is_tensor(args[0]):
        return None
    # Convolutions take numbers or a word for the padding; without any both mean the same.
    keys = [key for key in packet.overloads() if key != "padding" or _has_word(args, kwargs)]
    fits = [
        call
        for overload in (getattr(packet, key) for key in keys)
        for bound in _bound(overload, args, kwargs)
        if (call := aten_call(overload, *bound)) is not None
    ]
    return fits[0] if len(fits) == 1 else None


def _has_word(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return any(isinstance(value, str) for value in (*args, *kwargs.values()))


def _is_tensor(arg: Any) -> bool:
    if isinstance(arg, (list, tuple)):
        return all(isinstance(part, Node) for part in arg)
    return isinstance(arg, Node)


def _bound(overload: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yield the positional arguments of an overload, if the call fits its schema."""
    schema = overload._schema
    # A method or function may return a named tuple or a tuple where the operator has another.
    if [str(part.type) for part in schema.returns] != ["Tensor"]:
        return
    names = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    given = {
        ("self" if key == "input" and key not in names else key): kwargs[key] for key in kwargs
    }
    if len(args) > len(names) or not given.keys() <= set(names[len(args) :]):
        return
    if any(a.kwarg_only and not a.has_default_value() for a in schema.arguments):
        return
    bound = list(args)
    for argument in schema.arguments[len(args) : len(names)]:
        if argument.name not in given and not argument.has_default_value():
            return
        bound.append(given.get(argument.name, argument.default_value))
    yield bound


def _fits(argument: Any, value: Any) -> bool:
    """Tell whether an argument of a schema takes a value; a node is a tensor, number or flag."""
    if value is None:
        return str(argument.real_type).startswith("Optional[")
    kind = _kind(argument)
    if not kind.startswith("List["):
        return _is_a(kind, value)
    if type(value) is int:
        return kind == "List[int]" and argument.N is not None
    inside = kind.removeprefix("List[").removesuffix("]")
    return isinstance(value, (list, tuple)) and all(_is_a(inside, part) for part in value)


def _is_a(kind: str, value: Any) -> bool:
    if isinstance(value, Node):
        return kind in ("Tensor", "int", "SymInt", "float", "number", "bool")
    accepted = _ACCEPTED.get(kind)
    return accepted is not None and type(value) in accepted


_ACCEPTED: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "SymInt": (int,),
    "float": (float, int),
    "number": (float, int, bool, complex),
    "bool": (bool,),
    "str": (str,),
    "ScalarType": (torch.dtype,),
}


def _activation(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    bound = inspect.signature(target).bind(*args, **kwargs)
    bound.apply_defaults()
    values = dict(bound.arguments)
    inplace = values.pop("inplace")
    if not isinstance(inplace, bool):
        return None
    name = f"{ACTIVATIONS[target]}_" if inplace else ACTIVATIONS[target]
    return aten_call(getattr(aten, name).default, *values.values())


# What to call, and with which positional arguments.
Call = tuple[Any, tuple[Any, ...]]

# Functions of (input, *options, inplace), by the operator that takes (input, *options).
ACTIVATIONS = {
    F.relu: "relu",
    F.relu6: "relu6",
    F.hardtanh: "hardtanh",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.leaky_relu: "leaky_relu",
    F.elu: "elu",
    F.celu: "celu",
    F.selu: "selu",
    F.silu: "silu",
    F.mish: "mish",
}

# One function for each of torch.nn.functional, with the same signature.


def _dropout(name: str) -> Callable[..., Call | None]:
    def lower(
        input: Any, p: float = 0.5, training: Any = True, inplace: Any = False
    ) -> Call | None:
        if not isinstance(inplace, bool):
            return None
        packet = getattr(aten, f"{name}_" if inplace else name)
        return packet.default, (input, p, training)

    return lower


def _softmax(name: str) -> Callable[..., Call | None]:
    def lower(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Call | None:
        if type(dim) is not int:
            return None
        return getattr(aten, name).int, (input, dim, dtype)

    return lower


def _unary(name: str) -> Callable[..., Call | None]:
    return lambda input: (getattr(aten, name).default, (input,))


def _max_pool(name: str) -> Callable[..., Call | None]:
    def lower(
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Call | None:
        if return_indices is not False:
            return None
        strides = [] if stride is None else stride
        pool = getattr(aten, name).default
        return pool, (input, kernel_size, strides, padding, dilation, ceil_mode)

    return lower


def _adaptive_avg_pool(name: str) -> Callable[..., Call | None]:
    def lower(input: Any, output_size: Any) -> Call | None:
        sizes = output_size if isinstance(output_size, (list, tuple)) else [output_size]
        if not all(type(size) is int for size in sizes):
            return None
        return getattr(aten, name).default, (input, output_size)

    return lower


def _pad(input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Call | None:
    known = isinstance(pad, (list, tuple)) and mode != "replicate"
    return (aten.pad.default, (input, pad, mode, value)) if known else None


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Call:
    statistics = (running_mean, running_var, training, momentum, eps)
    return aten.batch_norm.default, (input, weight, bias, *statistics, _cudnn())


def _instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: Any = True,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Call:
    statistics = (running_mean, running_var, use_input_stats, momentum, eps)
    return aten.instance_norm.default, (input, weight, bias, *statistics, _cudnn())


def _layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Call:
    return aten.layer_norm.default, (input, normalized_shape, weight, bias, eps)


def _group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Call:
    return aten.group_norm.default, (input, num_groups, weight, bias, eps)


def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Call:
    return aten.rms_norm.default, (input, normalized_shape, weight, eps)


def _embedding(
    input: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Call | None:
    row = -1 if padding_idx is None else padding_idx
    # Rows counted from the end, and rows that are made shorter in place, need the weight itself.
    if max_norm is not None or type(row) is not int or (padding_idx is not None and row < 0):
        return None
    return aten.embedding.default, (weight, input, row, scale_grad_by_freq, sparse)


def _cudnn() -> bool:
    return bool(torch.backends.cudnn.enabled)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout("dropout"),
    F.dropout2d: _dropout("feature_dropout"),
    F.dropout3d: _dropout("feature_dropout"),
    F.alpha_dropout: _dropout("alpha_dropout"),
    F.feature_alpha_dropout: _dropout("feature_alpha_dropout"),
    F.softmax: _softmax("softmax"),
    F.log_softmax: _softmax("log_softmax"),
    F.sigmoid: _unary("sigmoid"),
    F.tanh: _unary("tanh"),
    F.max_pool1d: _max_pool("max_pool1d"),
    F.max_pool2d: _max_pool("max_pool2d"),
    F.max_pool3d: _max_pool("max_pool3d"),
    F.adaptive_avg_pool2d: _adaptive_avg_pool("adaptive_avg_pool2d"),
    F.adaptive_avg_pool3d: _adaptive_avg_pool("adaptive_avg_pool3d"),
    F.pad: _pad,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
    F.embedding: _embedding,
}


def average_factor(batches: torch.Tensor, training: bool) -> float:
    """Return batch norm's share of the newest batch in a cumulative average (momentum=None)."""
    return 1.0 / float(batches) if training else 0.0


def instance_norm(
    input: torch.Tensor,
    dims: int,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Normalise each instance; one without a batch dimension is taken for a batch of one.

    Args:
        input: of `dims` dimensions with, and one fewer without a batch.
        dims: of a batch.
        running_mean: see torch.nn.functional.instance_norm, as the others.
        running_var: likewise.
        weight: likewise.
        bias: likewise.
        use_input_stats: likewise.
        momentum: likewise.
        eps: likewise.
    """
    single = input.dim() == dims - 1
    found = F.instance_norm(
        input.unsqueeze(0) if single else input,
        running_mean,
        running_var,
        weight,
        bias,
        use_input_stats,
        momentum,
        eps,
    )
    return found.squeeze(0) if single else found


def _lower_batch_norm(module: Any) -> Callable[..., Any]:
    mean, var, batches = module.running_mean, module.running_var, module.num_batches_tracked
    whole = (mean is None) == (var is None) and (mean is not None) == module.track_running_stats
    if not whole:
        raise NotImplementedError("running statistics that are there and not tracked")

    def forward(input: Any) -> Any:
        tracked = batches is not None and module.track_running_stats
        momentum = module.momentum
        if tracked:
            counted = (batches, module.training)
            input.tracer.create_proxy("call_function", count_batch, counted, {})
        if momentum is None:
            momentum = 0.0
            if tracked:
                share = (batches, module.training)
                momentum = input.tracer.create_proxy("call_function", average_factor, share, {})
        training = True if mean is None else module.training
        return F.batch_norm(
            input, mean, var, module.weight, module.bias, training, momentum, module.eps
        )

    return forward


def _lower_instance_norm(module: Any) -> Callable[..., Any]:
    def forward(input: Any) -> Any:
        args = (
            input,
            module._get_no_batch_dim() + 1,
            module.running_mean,
            module.running_var,
            module.weight,
            module.bias,
            module.training if module.track_running_stats else True,
            0.0 if module.momentum is None else module.momentum,
            module.eps,
        )
        return input.tracer.create_proxy("call_function", instance_norm, args, {})

    return forward


NORMS: dict[type[nn.Module], Callable[[Any], Callable[..., Any]]] = {
    nn.BatchNorm1d: _lower_batch_norm,
    nn.BatchNorm2d: _lower_batch_norm,
    nn.BatchNorm3d: _lower_batch_norm,
    nn.InstanceNorm1d: _lower_instance_norm,
    nn.InstanceNorm2d: _lower_instance_norm,
    nn.InstanceNorm3d: _lower_instance_norm,
}
