"""The only code that edits a Program: its graphs and its tree. It counts and stamps the edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.fx.node import Node

from fxprune import tensors
from fxprune.bits import same_bits
from fxprune.errors import InvariantError, PassError, ShapeError
from fxprune.pattern import Match, Refusal, matches
from fxprune.program import Program
from fxprune.resizing import ResizingEdits
from fxprune.rule import RewriteRule

__all__ = ["Rewriter"]


class Rewriter(ResizingEdits):
    """Edits one Program.

    Args:
        program: the Program to edit; never one that a caller holds, see `fxprune.transaction`.
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
            return self._made(before.graph.create_node("get_attr", target))

    def call(self, target: Any, args: tuple[Any, ...], before: Node) -> Node:
        """Insert a call of a function."""
        with before.graph.inserting_before(before):
            return self._made(before.graph.call_function(target, args))

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

        Every alias gets the same Parameter and mask objects, under the keys, and in the order,
        that torch.nn.utils.prune gives them.

        Args:
            name: any of the parameter's names.
            mask: of the parameter's shape; cast to its dtype.

        Raises:
            ShapeError: the shapes differ.
            PassError: the graphs do not read the parameter, or its place is taken.
        """
        parameter = tensors.parameter(self.program, name)
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
        """Call the stored parameter `name_orig` by the name it has when masked.

        Args:
            name: the name without the suffix; its module holds `name_orig` and `name_mask`.
        """
        first = self.program.captured.first
        if name in first:
            return
        stored = first[f"{name}_orig"]
        named = {key: self._adopted(key, name) if first[key] == stored else key for key in first}
        self.program.captured.first = {named[key]: named[value] for key, value in first.items()}
        self.add_mask(name, tensors.masks(self.program)[name])

    def drop_mask(self, name: str, value: torch.Tensor | None = None) -> None:
        """Turn a masked parameter into a plain one.

        Args:
            name: any of the parameter's names.
            value: new values, of the same shape and dtype; the original ones when None.
        """
        parameter = tensors.parameter(self.program, name)
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
        """Check and compile the graphs, where any was edited; their code reads tensors by name.

        Raises:
            InvariantError: a graph is not well-formed.
        """
        self.check()
        if self._recompiles:
            self.program.recompile()

    def check(self) -> None:
        """Check the graphs, where any was edited, and leave it to the caller to compile them.

        Raises:
            InvariantError: a graph is not well-formed.
        """
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

    def _adopted(self, key: str, name: str) -> str:
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
            self._aliases = (first, tensors.aliases(self.program))
        aliases = self._aliases[1][first[name]]
        places = [tensors.owner(self.program, alias) for alias in aliases]
        return list({(id(owner), attr): (owner, attr) for owner, attr in places}.values())

    def _made(self, node: Node) -> Node:
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
