"""From a graph of torch.export to a graph of a Program: flat, plain meta, one read a tensor."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.export import ExportedProgram
from torch.fx.node import Node, map_arg

from fxprune.errors import CaptureError
from fxprune.program import PATH, RESERVED, VALUE, enter_autocast, exit_autocast, fingerprint

# torch.compile, or torch.export once more, cannot trace these, but what they stand for.
_OURS = {
    torch.ops.aten.sym_numel.default: torch.Tensor.numel,
    _enter_autocast: enter_autocast,
    _exit_autocast: exit_autocast,
}
_SMALL = 4096  # entries of a constant that is compared by value
_GRAD_REGION = torch.ops.higher_order.wrap_with_set_grad_enabled
_CAST_REGION = torch.ops.higher_order.wrap_with_autocast
# Where the graph of a region stands in the arguments.
_REGIONS: dict[Any, int] = {_GRAD_REGION: 1, _CAST_REGION: 4}


def unlift(exported: ExportedProgram) -> fx.GraphModule:
    """Turn an exported graph's inputs that stand for its tensors into reads, in place.

    It is what `exported.module()` gives of a graph as torch.export leaves it, without the copy.
    """
    module: Any = exported.graph_module
    held = {**exported.state_dict, **exported.constants}
    specs = exported.graph_signature.input_specs
    for spec, node in zip(specs, module.graph.find_nodes(op="placeholder"), strict=True):
        if spec.target is None:
            continue
        with module.graph.inserting_before(node):
            read = module.graph.create_node("get_attr", spec.target)
        read.meta = node.meta
        node.replace_all_uses_with(read)
        module.graph.erase_node(node)
        owner, (*path, name) = module, spec.target.split(".")
        for part in path:
            owner = owner._modules.setdefault(part, nn.Module())
        vars(owner)[name] = held[spec.target]
    module._out_spec = exported.call_spec.out_spec
    return module


class GraphImporter:
    """Imports the graphs of one model into one module tree.

    Args:
        root: the tree; constants of the graphs are added to it.
        first: every parameter's name mapped to the first name of the same parameter.
    """

    def __init__(self, root: nn.Module, first: Mapping[str, str]) -> None:
        self.root = root
        self.first = first
        self.buffers: dict[int, str] = {}
        for name, buffer in root.named_buffers(remove_duplicate=False):
            self.buffers.setdefault(id(buffer), name)
        self.constants: dict[Any, str] = {}
        self.ambient: Node | None = None  # the grad mode outside of the region that is copied

    def graph(self, module: fx.GraphModule) -> fx.Graph:
        """Import one exported graph."""
        graph, copied, reads = fx.Graph(), dict[Node, Any](), dict[str, Node]()
        self.ambient = None
        self._copy(module, graph, copied, reads)
        output = next(node for node in module.graph.nodes if node.op == "output")
        graph.output(_mapped(output.args[0], copied))
        for read in reads.values():
            if not read.users:
                graph.erase_node(read)
        return graph

    def _copy(
        self,
        module: fx.GraphModule,
        graph: fx.Graph,
        copied: dict[Node, Any],
        reads: dict[str, Node],
    ) -> None:
        for node in module.graph.nodes:
            if node in copied or node.op == "output" or _is_check(node) or _is_region(node):
                continue
            if node.op == "get_attr":
                target = self._attribute(module, str(node.target))
                if target not in reads:
                    reads[target] = graph.create_node("get_attr", target)
                copied[node] = reads[target]
            elif node.target in _REGIONS:
                copied[node] = self._inline(module, node, graph, copied, reads)
            elif node.target is torch._C._set_grad_enabled:
                self._set_grad(bool(node.args[0]), graph)
            elif node.target is operator.getitem and isinstance(copied[node.args[0]], tuple):
                copied[node] = copied[node.args[0]][node.args[1]]
            else:
                copied[node] = graph.node_copy(node, lambda n: copied[n])
                copied[node].target = _OURS.get(node.target, node.target)
                copied[node].meta = _plain_meta(node)
                if node.target is _enter_autocast:
                    copied[node].args = node.args[:3]

    def _inline(
        self,
        module: fx.GraphModule,
        node: Node,
        graph: fx.Graph,
        copied: dict[Node, Any],
        reads: dict[str, Node],
    ) -> tuple[Any, ...]:
        """Copy a region of another grad mode or of autocast, so that rules see inside it."""
        at, args = _REGIONS[node.target], tuple[Any, ...](node.args)
        settings, region, inputs = args[:at], args[at], args[at + 1 :]
        nested: Any = module.get_submodule(str(region.target))
        inside = [n for n in nested.graph.nodes if n.op == "placeholder"]
        copied.update(zip(inside, (_mapped(arg, copied) for arg in inputs), strict=True))
        if node.target is _GRAD_REGION:
            before = graph.call_function(torch.is_grad_enabled)
            graph.call_function(torch._C._set_grad_enabled, settings)
            self._copy(nested, graph, copied, reads)
            graph.call_function(torch._C._set_grad_enabled, (before,))
        else:
            entered = graph.call_function(enter_autocast, settings[:3])
            self._copy(nested, graph, copied, reads)
            graph.call_function(exit_autocast, (entered,))
        output = next(n for n in nested.graph.nodes if n.op == "output")
        return tuple(_mapped(output.args[0], copied))

    def _set_grad(self, enabled: bool, graph: fx.Graph) -> None:
        """Begin a region without gradients, or end it in the grad mode that there was before."""
        if not enabled and self.ambient is None:
            self.ambient = graph.call_function(torch.is_grad_enabled)
        closes = enabled and self.ambient is not None
        graph.call_function(torch._C._set_grad_enabled, (self.ambient if closes else enabled,))
        if closes:
            self.ambient = None

    def _attribute(self, module: fx.GraphModule, target: str) -> str:
        """Return the name under which the tree has what an exported graph reads."""
        if target in self.first:
            return self.first[target]
        path, _, name = target.rpartition(".")
        value = getattr(module.get_submodule(path), name)
        if _found(self.root, path, name) is value:
            return self.buffers.get(id(value), target)
        if not isinstance(value, (torch.Tensor, fx.GraphModule)):
            kind = type(value).__name__.lstrip("_")
            raise CaptureError(
                f"forward makes a {kind} of its own, which a graph cannot hold; make it outside of "
                "forward, and what it draws as well"
            )
        key = _key(value)
        if key not in self.constants:
            self.constants[key] = self._keep(path, name, value)
        return self.constants[key]

    def _keep(self, path: str, name: str, value: Any) -> str:
        """Add a constant of the graph to the tree: a plain tensor attribute, or a nested graph."""
        try:
            owner = self.root.get_submodule(path)
        except AttributeError:
            path, name, owner = "", f"{path}.{name}".replace(".", "_"), self.root
        while hasattr(owner, name) or (owner is self.root and name in RESERVED):
            name = f"{name}_"
        if isinstance(value, nn.Module):
            owner.add_module(name, value)
        else:
            owner.register_buffer(name, value.detach(), persistent=False)
        return f"{path}.{name}" if path else name


def _key(value: Any) -> Any:
    """Return a key that is equal for the constants of two captures of one model."""
    if isinstance(value, fx.GraphModule):
        return repr(fingerprint(value.graph))
    if value.is_meta or value.numel() > _SMALL or value.is_complex() or value.is_sparse:
        return id(value)
    return value.dtype, tuple(value.shape), str(value.device), repr(value.tolist())


def _is_check(node: Node) -> bool:
    """Tell whether a node only asserts what export assumed of the example."""
    return "_assert_" in str(node.target) or "_guards" in str(node.target)


def _is_region(node: Node) -> bool:
    return node.op == "get_attr" and any(
        user.target in _REGIONS and user.args[_REGIONS[user.target]] is node for user in node.users
    )


def _mapped(arg: Any, copied: Mapping[Node, Any]) -> Any:
    return map_arg(arg, lambda n: copied[n])


def _found(root: nn.Module, path: str, name: str) -> Any:
    try:
        return getattr(root.get_submodule(path), name)
    except AttributeError:
        return None


def path_of(node: Node) -> str | None:
    """Return the path of the module whose forward made a node of an exported graph."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack or not isinstance(stack[-1][0], str):
        return None
    path = ".".join(part.partition("@")[0] for part in stack[-1][0].split("."))
    return "" if path.startswith("_empty_nn_module_stack") else path


def _plain_meta(node: Node) -> dict[str, Any]:
    """Keep of a node's meta what is plain data: value, module path, source lines."""
    meta: dict[str, Any] = {}
    path = path_of(node)
    if path is not None:
        meta[PATH] = path
    if node.meta.get("stack_trace"):
        meta["stack_trace"] = node.meta["stack_trace"]
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        shape = tuple(str(d) if isinstance(d, torch.SymInt) else int(d) for d in value.shape)
        meta[VALUE] = (shape, value.dtype)
    return meta
