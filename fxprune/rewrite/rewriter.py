"""The only code that edits a Program, its graphs and its tree; and rules that edit through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.node import Node, map_arg

from fxprune.errors import InvariantError, PassError, ShapeError
from fxprune.program import (
    VALUE,
    Program,
    ShrinkRecord,
    is_product,
    ops,
    parameter_of,
    parameters,
    submodule,
)
from fxprune.rewrite.matching import matches
from fxprune.rewrite.pattern import Match, Pattern, Refusal, parse
from fxprune.support import same_bits

# Takes the rewriter, the matched node and the pattern's bindings by name.
Rewrite = Callable[..., Node | Refusal]


@dataclass(frozen=True)
class RewriteRule:
    """A pattern and the function that rewrites its matches.

    Args:
        name: stamped on every node that the rule makes.
        pattern: what the rule looks for.
        rewrite: called as `rewrite(rewriter, node, **bindings)`; returns the node that stands for
            the match afterwards, or a Refusal.
    """

    name: str
    pattern: Pattern
    rewrite: Rewrite

    def __call__(self, rewriter: Rewriter, node: Node, bindings: dict[str, Any]) -> Node | Refusal:
        """Rewrite one match."""
        return self.rewrite(rewriter, node, **bindings)


def rule(pattern: str, *, name: str) -> Callable[[Rewrite], RewriteRule]:
    """Make a rewrite rule of the function below it.

    Args:
        pattern: an expression in the language of `fxprune.rewrite.pattern`.
        name: the rule's name, in the report and on the nodes it makes.

    Example:
        >>> @rule("relu(x)", name="no-relu")
        ... def no_relu(rw, node, x):
        ...     return Refusal("relu is wanted", node)
        >>> no_relu.name
        'no-relu'
    """
    parsed = parse(pattern)
    return lambda function: RewriteRule(name, parsed, function)


Place = tuple[dict[str, Any], str]


class ResizingEdits:
    """The Rewriter's edits that change sizes."""

    program: Program

    def __init__(self) -> None:
        # Of each tensor by id: the dicts and keys that hold it. All of these are held there.
        self._places_of: dict[int, list[Place]] = {}

    def _count(self) -> None:
        raise NotImplementedError

    def _count_in_graph(self) -> None:
        raise NotImplementedError

    def record_shrink(self, record: ShrinkRecord) -> None:
        """Keep what a shrink did for the report."""
        self.program.captured.shrinks += (record,)

    def stored(self, name: str) -> torch.Tensor:
        """Return a stored tensor: a parameter by any name, without its mask, or a buffer."""
        if name in self.program.captured.first:
            return parameters.parameter(self.program, name)
        return _at(self.program, name)

    def resize(self, name: str, tensor: torch.Tensor) -> None:
        """Give a parameter, under all its names, or a buffer other values of another shape."""
        self._count()
        if name not in self.program.captured.first:
            self._swap(_at(self.program, name), tensor)
            return
        old = parameters.parameter(self.program, name)
        new = nn.Parameter(tensor, requires_grad=old.requires_grad)
        self._swap(old, new)
        replaced = self.program.captured.replaced
        first = next((pair for pair in replaced if pair[1] is old), None)
        # Made by an earlier edit? Then the caller's object is an older one.
        self.program.captured.replaced = [pair for pair in replaced if pair is not first]
        self.program.captured.replaced.append((old if first is None else first[0], new))

    def _swap(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Put a tensor into the place of another one, under all its names."""
        if id(old) not in self._places_of:
            self._places_of = places_by_tensor(self.program)
        found = self._places_of.pop(id(old))
        for items, key in found:
            items[key] = new
        self._places_of[id(new)] = found

    def holds(self, name: str) -> bool:
        """Tell whether a name is that of a stored tensor, and not of a flag or a graph."""
        owner, attribute = _owner(self.program, name)
        return any(attribute in items for items in (owner._parameters, owner._buffers))

    def drop_tensor(self, name: str) -> None:
        """Take a tensor or a mask that no graph reads out of the tree, under all its names."""
        first = self.program.captured.first
        tensor = _at(self.program, name)
        for items, key in places_by_tensor(self.program)[id(tensor)]:
            del items[key]
        plain = name if name in first else name.removesuffix("_orig")
        left = {key: value for key, value in first.items() if value != first.get(plain)}
        if isinstance(tensor, nn.Parameter):
            self.program.captured.first = left
        self._count()

    def note(self, node: Node, key: str, value: Any) -> None:
        """Set an entry of a node's meta."""
        node.meta[key] = value
        self._count()

    def note_all(self, node: Node, like: Node) -> None:
        """Copy what is noted of a node to the one that replaces it, where that has nothing."""
        node.meta.update({key: value for key, value in like.meta.items() if key not in node.meta})

    def replace_argument(self, node: Node, old: Node, new: Node) -> None:
        """Let a node read another node in the place of one."""
        node.args = map_arg(node.args, lambda n: new if n is old else n)
        node.kwargs = map_arg(node.kwargs, lambda n: new if n is old else n)
        self._count_in_graph()

    def add_constant(self, name: str, tensor: torch.Tensor, *, persistent: bool = False) -> str:
        """Add a buffer; return the free name that it got."""
        while hasattr(self.program, name):
            name = f"{name}_"
        tensor = tensor.to(self.program.device)
        self.program.register_buffer(name, tensor, persistent=persistent)
        self._count()
        return name

    def add_to_bias(self, node: Node, role: str, delta: torch.Tensor) -> None:
        """Add float64 numbers, one an output, to the bias as it is masked; unmask what changes."""
        bias = ops.argument(node, role)
        name = parameter_of(self.program, bias)
        if name is None:
            raise PassError(f"the bias of {node.name} is computed, so that nothing can be added")
        orig = parameters.parameter(self.program, name)
        value = parameters.value(self.program, name).detach()
        there = (delta != 0).to(orig.device)
        total = (value.double() + delta.to(orig.device)).to(orig.dtype)
        self.resize(name, torch.where(there, total, orig.detach()))
        if is_product(self.program, bias):
            key = str(bias.args[1].target)
            mask = _at(self.program, key)
            self.resize(key, torch.where(there, torch.ones_like(mask), mask))

    def add_bias(self, node: Node, name: str, bias: torch.Tensor) -> None:
        """Give a linear layer or a convolution a bias; another mode's graph may have added it."""
        first = self.program.captured.first
        if name not in first:
            weight = parameter_of(self.program, ops.argument(node, "weight"))
            like = parameters.parameter(self.program, str(weight))
            owner, attribute = _owner(self.program, name)
            made = nn.Parameter(bias.to(like), requires_grad=like.requires_grad)
            owner._parameters[attribute] = made
            self.program.captured.first = _after(first, str(weight), name)
        read: Any = self.read(name, before=node)  # pyright: ignore[reportAttributeAccessIssue]
        at = [arg.name for arg in ops.schema_arguments(node.target)].index("bias")
        if at < len(node.args):
            node.args = (*node.args[:at], read, *node.args[at + 1 :])
        else:
            node.kwargs = {**node.kwargs, "bias": read}
        read.meta.setdefault(VALUE, ((bias.shape[0],), bias.dtype))
        self._count_in_graph()


def places_by_tensor(program: Program) -> dict[int, list[Place]]:
    """Return, for each tensor by its id, the dicts of modules that hold it, with the key."""
    found: dict[int, list[Place]] = {}
    for module in program.modules():
        for items in (module._parameters, module._buffers):
            for key, tensor in items.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append((items, key))
    return found


def bias_name(program: Program, weight: str) -> str | None:
    """Return what a bias beside a weight is called; None where its place is taken."""
    path, _, attribute = weight.rpartition(".")
    name = attribute.replace("weight", "bias") if "weight" in attribute else f"{attribute}_bias"
    full = f"{path}.{name}" if path else name
    taken = getattr(submodule(program, path), name, None) is not None
    return None if taken or full in program.captured.first else full


def _after(first: dict[str, str], weight: str, name: str) -> dict[str, str]:
    """Return the parameters' names with another one behind a weight's."""
    made: dict[str, str] = {}
    for key, value in first.items():
        made[key] = value
        if key == weight:
            made[name] = name
    return made


def _owner(program: Program, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return submodule(program, path), attribute


def _at(program: Program, name: str) -> torch.Tensor:
    owner, attribute = _owner(program, name)
    return getattr(owner, attribute)


class Rewriter(ResizingEdits):
    """Edits one Program.

    Args:
        program: the Program to edit; never one that a caller holds, see `fxprune.program.forks`.
        by: the pass or rule in whose name edits are made.

    Attributes:
        edits: how many edits were made.
        refusals: what rules refused, in order.
    """

    def __init__(self, program: Program, by: str) -> None:
        super().__init__()
        self.program = program
        self.by = by
        self.edits = 0
        self.refusals: list[Refusal] = []
        self._recompiles = False
        self._aliases: tuple[dict[str, str], dict[str, tuple[str, ...]]] | None = None

    # Rules

    def apply(self, rules: Sequence[RewriteRule]) -> None:
        """Apply each rule to its matches in each graph, once, in graph order."""
        for rewrite_rule in rules:
            for graph in self.program.graphs.values():
                for found in matches(rewrite_rule.pattern, graph, self.program):
                    self._rewrite(rewrite_rule, found)

    def _rewrite(self, rewrite_rule: RewriteRule, found: Match) -> None:
        outer, self.by = self.by, rewrite_rule.name
        result = rewrite_rule(self, found.node, found.bindings)
        self.by = outer
        if isinstance(result, Refusal):
            self.refusals.append(result)

    # Graph edits

    def read(self, target: str, before: Node) -> Node:
        """Insert a read of an attribute: a tensor, a training flag or the device."""
        # create_node, since Graph.get_attr warns of attributes that are not tensors.
        with before.graph.inserting_before(before):
            return self._stamp(before.graph.create_node("get_attr", target))

    def call(self, target: Any, args: tuple[Any, ...], before: Node) -> Node:
        """Insert a call of a function."""
        with before.graph.inserting_before(before):
            return self._stamp(before.graph.call_function(target, args))

    def set_argument(self, node: Node, position: int, value: Any) -> None:
        """Change one positional argument of a node."""
        args = list(node.args)
        args[position] = value
        node.args = tuple(args)
        self._count_in_graph()

    def set_keyword(self, node: Node, name: str, value: Any) -> None:
        """Change one keyword argument of a node."""
        node.kwargs = {**node.kwargs, name: value}
        self._count_in_graph()

    def retarget(self, node: Node, target: str) -> None:
        """Let a read name another attribute."""
        node.target = target
        self._count_in_graph()

    def replace_uses(self, node: Node, new: Node) -> None:
        """Let every user of `node`, but `new` itself, read `new`."""
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self._count_in_graph()

    def erase(self, node: Node) -> None:
        """Remove a node that nothing reads."""
        node.graph.erase_node(node)
        self._count_in_graph()

    # Tree edits

    def add_mask(self, name: str, mask: torch.Tensor) -> None:
        """Turn a parameter into a masked one, or give a masked one another mask.

        Every alias gets the same Parameter and mask objects, under the keys, and in the order, that
        torch.nn.utils.prune gives them.
        """
        parameter = parameters.parameter(self.program, name)
        refused = self.program.captured.refused.get(self.program.captured.first[name])
        if refused is not None:
            raise PassError(f"{name!r} cannot be masked: {refused}")
        if mask.shape != parameter.shape:
            raise ShapeError(
                f"the mask of {name!r} has shape {tuple(mask.shape)}, the parameter "
                f"{tuple(parameter.shape)}; give one entry of the mask to each of the parameter"
            )
        mask = mask.detach().to(parameter.dtype)
        if not parameter.is_contiguous():
            # In another memory format than its parameter's the product would be slower.
            mask = torch.empty_like(parameter.detach()).copy_(mask)
        for owner, attribute in self._places(name):
            if owner._parameters.get(attribute) is not None:
                _check_free(owner, attribute, name)
                owner._parameters.pop(attribute)
                owner._parameters[f"{attribute}_orig"] = parameter
            owner._buffers[f"{attribute}_mask"] = mask
        self._count()

    def adopt(self, name: str) -> None:
        """Call a stored `name_orig` beside a `name_mask` by the name it has when masked."""
        first = self.program.captured.first
        if name in first:
            return
        stored = first[f"{name}_orig"]
        named = {key: self._name_after(key, name) if first[key] == stored else key for key in first}
        self.program.captured.first = {named[key]: named[value] for key, value in first.items()}
        self.add_mask(name, parameters.masks(self.program)[name])

    def drop_mask(self, name: str, value: torch.Tensor | None = None) -> None:
        """Turn a masked parameter into a plain one, with new values or the original ones."""
        parameter = parameters.parameter(self.program, name)
        if value is not None:
            replaced = nn.Parameter(value, requires_grad=parameter.requires_grad)
            self.program.captured.replaced.append((parameter, replaced))
            parameter = replaced
        for owner, attribute in self._places(name):
            owner._parameters.pop(f"{attribute}_orig", None)
            owner._buffers.pop(f"{attribute}_mask", None)
            owner._parameters[attribute] = parameter
        self._count()

    def restore_order(self) -> None:
        """Put every parameter key where the source had it."""
        by_path: dict[str, dict[str, int]] = {}
        for i, name in enumerate(self.program.captured.first):
            path, _, attribute = name.rpartition(".")
            by_path.setdefault(path, {})[attribute] = i
        for path, module in self.program.named_modules():
            ranks = by_path.get(path, {})
            items = sorted(
                module._parameters.items(),
                key=lambda item: ranks.get(item[0], ranks.get(item[0].removesuffix("_orig"), 0)),
            )
            if [key for key, _ in items] != list(module._parameters):
                module._parameters = dict(items)
                self._count()

    def finish(self) -> None:
        """Check and compile the graphs, where any was edited; their code reads tensors by name."""
        self.check()
        if self._recompiles:
            self.program.recompile()

    def check(self) -> None:
        """Check the graphs, where any was edited, and leave it to the caller to compile them."""
        if not self._recompiles:
            return
        for graph in self.program.graphs.values():
            graph.owning_module = self.program
            try:
                graph.lint()
            except (RuntimeError, ValueError) as error:
                raise InvariantError(
                    f"{self.by} left a graph that is not well-formed: {error}"
                ) from error

    # Helpers

    def _name_after(self, key: str, name: str) -> str:
        """Return what the alias of an adopted parameter is called: its mask has to be the same."""
        shown = key.removesuffix("_orig")
        pair: list[torch.Tensor | None] = []
        for path, _, attribute in (shown.rpartition("."), name.rpartition(".")):
            pair.append(self.program.get_submodule(path)._buffers.get(f"{attribute}_mask"))
        own, mask = pair
        same = shown != key and own is not None and mask is not None and same_bits(own, mask)
        return shown if same else key

    def _places(self, name: str) -> list[tuple[nn.Module, str]]:
        """Return owner and attribute of every alias; a module shared by two paths once."""
        first = self.program.captured.first
        if self._aliases is None or self._aliases[0] is not first:  # replaced, never changed
            self._aliases = (first, parameters.aliases(self.program))
        aliases = self._aliases[1][first[name]]
        places = [parameters.owner(self.program, alias) for alias in aliases]
        return list({(id(owner), attr): (owner, attr) for owner, attr in places}.values())

    def _stamp(self, node: Node) -> Node:
        node.meta["fxprune.by"] = self.by
        self._count_in_graph()
        return node

    def _count(self) -> None:
        self.edits += 1

    def _count_in_graph(self) -> None:
        self._recompiles = True
        self._count()


def _check_free(owner: nn.Module, attribute: str, name: str) -> None:
    """Check that a module has no attributes of its own where a masked parameter's would stand."""
    for key in (f"{attribute}_orig", f"{attribute}_mask"):
        if key in owner._parameters or key in owner._buffers or key in owner._modules:
            raise PassError(
                f"{name!r} cannot be masked: its module has an attribute {key!r} of its own, where "
                "the masked parameter is stored; rename it in the model"
            )
