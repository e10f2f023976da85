"""Faults in how graphs and the tree are edited."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.program import parameters
from fxprune.program.ops import canonical_name
from fxprune.rewrite.matching import matches
from tests.mutants.mutant import Mutant

# Masks


def on_another(original: Any) -> Any:
    """Give the mask to the next parameter of its shape."""

    def add(self: Any, name: str, mask: torch.Tensor) -> None:
        names = list(parameters.aliases(self.program))
        at = names.index(self.program.captured.first[name])
        others = [
            n for n in names[at + 1 :] if parameters.parameter(self.program, n).shape == mask.shape
        ]
        original(self, others[0] if others else name, mask)

    return add


def one_alias(original: Any) -> Any:
    return lambda self, name: original(self, name)[:1]


def another_dtype(original: Any) -> Any:
    def add(self: Any, name: str, mask: torch.Tensor) -> None:
        original(self, name, mask)
        wider = torch.float64 if mask.dtype != torch.float64 else torch.float32
        wide = mask.to(wider)
        for owner, attribute in self._places(name):
            owner._buffers[f"{attribute}_mask"] = wide

    return add


def on_buffer(change: Any) -> Any:
    """Change the mask after it was added."""

    def mutate(original: Any) -> Any:
        def add(self: Any, name: str, mask: torch.Tensor) -> None:
            original(self, name, mask)
            for owner, attribute in self._places(name):
                change(owner, f"{attribute}_mask", f"{attribute}_orig")

        return add

    return mutate


def train_mask(owner: nn.Module, mask: str, orig: str) -> None:
    made = owner._buffers[mask]
    if made is not None and made.is_floating_point():
        made.requires_grad_(True)


def forget_on_save(owner: nn.Module, mask: str, orig: str) -> None:
    owner._non_persistent_buffers_set.add(mask)


def another_parameter(owner: nn.Module, mask: str, orig: str) -> None:
    old = owner._parameters[orig]
    if old is not None:
        owner._parameters[orig] = nn.Parameter(old.detach().clone(), old.requires_grad)


def write_into(owner: nn.Module, mask: str, orig: str) -> None:
    """Zero what is masked in the original weight as well, past torch's count of writes."""
    old, made = owner._parameters[orig], owner._buffers[mask]
    if old is not None and made is not None:
        old.data.mul_(made)


def product_each(original: Any) -> Any:
    """Make a product for every user."""

    def insert(self: Any, rw: Any, node: Any, bindings: Any) -> Any:
        made = original(self, rw, node, bindings)
        users = list(getattr(made, "users", ()))
        for user in users[1:]:
            if self.name == "insert-mask":
                again = rw.call(made.target, made.args, before=user)
                user.replace_input_with(made, again)
        return made

    return insert


def product_twice(original: Any) -> Any:
    """Multiply the product with the mask once more."""

    def insert(self: Any, rw: Any, node: Any, bindings: Any) -> Any:
        made = original(self, rw, node, bindings)
        if self.name == "insert-mask" and hasattr(made, "users"):
            first = next(iter(made.users))
            again = rw.call(made.target, (made, made.args[1]), before=first)
            for user in list(made.users):
                if user is not again:
                    user.replace_input_with(made, again)
        return made

    return insert


def before_first_user(original: Any) -> Any:
    return lambda read: next(node for node in read.graph.nodes if node in read.users)


def one_graph(last: bool) -> Any:
    """Apply rules to one graph alone."""

    def mutate(original: Any) -> Any:
        def apply(self: Any, rules: Any) -> None:
            graph = list(self.program.graphs.values())[-1 if last else 0]
            for each in rules:
                for found in matches(each.pattern, graph, self.program):
                    self._rewrite(each, found)

        return apply

    return mutate


# After all edits


def not_compiled(original: Any) -> Any:
    def finish(self: Any) -> None:
        for graph in self.program.graphs.values():
            graph.lint()

    return finish


def also(change: Any) -> Any:
    """Edit something else as well."""

    def mutate(original: Any) -> Any:
        def finish(self: Any) -> None:
            if self.edits:
                change(self.program)
            original(self)

        return finish

    return mutate


def drop_activation(program: Any) -> None:
    for graph in program.graphs.values():
        for node in list(graph.nodes):
            if canonical_name(node.target) in ("relu", "tanh", "gelu") and node.op != "output":
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)


def change_constant(program: Any) -> None:
    """Make the first number among the arguments of a call larger by one thousandth."""
    for graph in program.graphs.values():
        for node in graph.nodes:
            numbers = [i for i, arg in enumerate(node.args) if type(arg) is float]
            if numbers and node.op == "call_function":
                args = list(node.args)
                args[numbers[0]] += 0.001
                node.args = tuple(args)
                return


def flip_flag(program: Any) -> None:
    part = list(program.modules())[-1]
    part.training = not part.training


def swap_parameters(program: Any) -> None:
    """Let two reads of parameters of one shape change places."""
    graph = next(iter(program.graphs.values()))
    reads = [
        n for n in graph.nodes if n.op == "get_attr" and str(n.target) in program.captured.first
    ]
    for a in reads:
        for b in reads:
            pair = [parameters.parameter(program, str(n.target)) for n in (a, b)]
            if a is not b and pair[0] is not pair[1] and pair[0].shape == pair[1].shape:
                a.target, b.target = b.target, a.target
                return


# Finalize and unmask


def folded(value: Any) -> Any:
    def mutate(original: Any) -> Any:
        def fold(self: Any, program: Any, name: str) -> torch.Tensor:
            orig = parameters.parameter(program, name).detach()
            return value(self, orig, parameters.masks(program)[name])

        return fold

    return mutate


def clean(self: Any, orig: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (orig * mask).masked_fill(mask == 0, 0)


def dropping(change: Any) -> Any:
    def mutate(original: Any) -> Any:
        def drop(self: Any, name: str, value: Any = None) -> None:
            change(original, self, name, value)

        return drop

    return mutate


def restore_masked(original: Any, self: Any, name: str, value: Any) -> None:
    original(self, name, parameters.value(self.program, name) if value is None else value)


def keep_buffer(original: Any, self: Any, name: str, value: Any) -> None:
    places = [(o, a, o._buffers.get(f"{a}_mask")) for o, a in self._places(name)]
    original(self, name, value)
    for owner, attribute, mask in places:
        owner._buffers[f"{attribute}_mask"] = mask


def freeze(original: Any, self: Any, name: str, value: Any) -> None:
    original(self, name, value)
    parameters.parameter(self.program, name).requires_grad_(False)


def reset_statistics(original: Any, self: Any, name: str, value: Any) -> None:
    original(self, name, value)
    for module in self.program.modules():
        if module._buffers.get("running_mean") is not None:
            module._buffers["running_mean"] = torch.zeros_like(module._buffers["running_mean"])


def all_but_last(original: Any) -> Any:
    return lambda program, names: original(program, names)[:-1]


def nothing(original: Any) -> Any:
    return lambda self: None


# Adoption


def lose_one(original: Any) -> Any:
    return lambda program, hooked: dict(list(original(program, hooked).items())[:-1])


def ones(original: Any) -> Any:
    return lambda program, hooked: {
        name: torch.ones_like(mask) for name, mask in original(program, hooked).items()
    }


EDIT = "fxprune.rewrite.rewriter:Rewriter."
FOLD = "fxprune.passes.fold_masks:FoldMasks._product"
RULE = "fxprune.rewrite.rewriter:RewriteRule.__call__"

MUTANTS = (
    Mutant("mask on another parameter", f"{EDIT}add_mask", on_another),
    Mutant("mask dropped for an alias", f"{EDIT}_places", one_alias),
    Mutant("mask of another dtype", f"{EDIT}add_mask", another_dtype),
    Mutant("mask is trained", f"{EDIT}add_mask", on_buffer(train_mask)),
    Mutant("mask is not saved", f"{EDIT}add_mask", on_buffer(forget_on_save)),
    Mutant("original copied", f"{EDIT}add_mask", on_buffer(another_parameter)),
    Mutant("original written to", f"{EDIT}add_mask", on_buffer(write_into)),
    Mutant("product not shared", RULE, product_each),
    Mutant("product of the product", RULE, product_twice),
    Mutant(
        "product where no gradients are", "fxprune.passes.mask:_place_before", before_first_user
    ),
    Mutant("mode lost: the last graph", f"{EDIT}apply", one_graph(last=False)),
    Mutant("mode lost: the first graph", f"{EDIT}apply", one_graph(last=True)),
    Mutant("stale compiled code", f"{EDIT}finish", not_compiled),
    Mutant("activation dropped", f"{EDIT}finish", also(drop_activation)),
    Mutant("constant changed", f"{EDIT}finish", also(change_constant)),
    Mutant("training flag flipped", f"{EDIT}finish", also(flip_flag)),
    Mutant("reads of two parameters swapped", f"{EDIT}finish", also(swap_parameters)),
    Mutant("finalize forgets the mask", FOLD, folded(lambda self, orig, mask: orig.clone())),
    Mutant("finalize forgets the original", FOLD, folded(lambda self, orig, mask: mask.clone())),
    Mutant("finalize cleans where it keeps", FOLD, folded(clean)),
    Mutant("finalize keeps where it cleans", FOLD, folded(lambda self, orig, mask: orig * mask)),
    Mutant("finalize leaves one mask", "fxprune.passes.fold_masks:masked_names", all_but_last),
    Mutant("finalize loses the order of keys", f"{EDIT}restore_order", nothing),
    Mutant("mask stays behind", f"{EDIT}drop_mask", dropping(keep_buffer)),
    Mutant("finalized weights frozen", f"{EDIT}drop_mask", dropping(freeze)),
    Mutant("statistics reset", f"{EDIT}drop_mask", dropping(reset_statistics)),
    Mutant("unmask restores masked values", f"{EDIT}drop_mask", dropping(restore_masked)),
    Mutant("adoption loses a mask", "fxprune.compiler.run:joined_masks", lose_one),
    Mutant("adoption takes ones", "fxprune.compiler.run:joined_masks", ones),
)
