"""Graphs of torch.fx.symbolic_trace as Programs, without an example: to select, mask and finalize.

Layers are opened, so that their parameters are read in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Node, map_arg
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.frontends.importing import GraphImporter
from fxprune.frontends.lowering import lower_function, lower_method
from fxprune.frontends.modes import is_plain_layer, live_devices
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
            call = lower_function(target, args, kwargs)
        elif kind == "call_method":
            call = lower_method(target, args, kwargs)
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
            if is_plain_layer(module):
                return self._opened(path, module, args, kwargs)
        except Exception:  # noqa: BLE001 - forward decides on what it is given, or cannot be recorded
            for node in reversed([node for node in self.graph.nodes if node not in there]):
                self.graph.erase_node(node)
            self.reads = reads
        self._keep(path, module)
        return self._stamped(self.graph.create_node("call_module", path, args, kwargs))

    def _opened(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        norm = _NORMS.get(type(module))
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


def average_factor(batches: torch.Tensor, training: bool) -> float:
    """Return batch norm's share of the newest batch in a cumulative average (momentum=None)."""
    return 1.0 / float(batches) if training else 0.0


def instance_norm(
    input: torch.Tensor, dims: int, mean: Any, var: Any, weight: Any, bias: Any, *options: Any
) -> torch.Tensor:
    """Call torch.nn.functional.instance_norm on a batch of `dims` dimensions, or on one of it."""
    single = input.dim() == dims - 1
    batch = input.unsqueeze(0) if single else input
    found = F.instance_norm(batch, mean, var, weight, bias, *options)
    return found.squeeze(0) if single else found


def _batch_norm_of(module: Any) -> Callable[..., Any]:
    """Return what a batch norm's forward calls, whatever it is given."""
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


def _instance_norm_of(module: Any) -> Callable[..., Any]:
    """Return what an instance norm's forward calls, whatever it is given."""

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


# The layers whose own forward decides on what it is given.
_NORMS: dict[type[nn.Module], Callable[[Any], Callable[..., Any]]] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm_of),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm_of),
}
