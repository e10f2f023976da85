"""What `torch.nn.utils.prune` means: its own masks, on a model that reads every weight masked.

`Oracle` lets torch prune one copy of a model, by hooks, and takes masks, parameters, buffers and
keys from it. Its forward runs a second, dense copy with `orig * mask` written into each weight
(`torch.func.functional_call`). The two are the same function wherever hooks act; where they do
not (an alias of a tied weight stays dense, attention never calls its `out_proj`), the second says
what the masks mean. `hooks_act` tells which; `hooked_forward` is torch's own answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import prune as torch_prune
from torch.utils import _pytree as pytree

from fxprune.compiler import prune
from fxprune.program import Program
from fxprune.recipe import Recipe
from fxprune.testing.calls import Call, methods_of, perform
from fxprune.testing.comparing import DifferenceError, difference

Loss = Callable[[Any], Tensor]
Step = dict[str, Tensor | None]
"""The gradient of each parameter after one backward."""


def loss_of(output: Any) -> Tensor:
    """A scalar to which every floating output contributes, each with a weight of its own."""
    tensors = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]
    leaves = [x.double() for x in tensors if x.is_floating_point()]
    terms = [(x**2).mean() * (i + 1) + x.mean() for i, x in enumerate(leaves)]
    return torch.stack(terms).sum()


def step_by_step(
    model: nn.Module, forward: Callable[[], Any], *, loss: Loss, steps: int, lr: float, seed: int
) -> list[Step]:
    """Train by SGD with momentum and weight decay; return each step's gradients by name.

    The seed is that of the first step; each later one has the next.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.01)
    gradients: list[Step] = []
    for step in range(steps):
        torch.manual_seed(seed + step)
        optimizer.zero_grad()
        loss(forward()).backward()
        named = model.named_parameters()
        gradients.append({k: None if p.grad is None else p.grad.clone() for k, p in named})
        optimizer.step()
    return gradients


class Oracle:
    """Torch's pruning of a model, with the forward that its masks mean."""

    def __init__(self, model: nn.Module) -> None:
        # Copied at once: a model with pruning hooks cannot be copied (its weights are non-leaf).
        self.hooked = copy.deepcopy(model)  # torch prunes it; parameters and buffers live here
        self.dense = copy.deepcopy(model)  # is run; its own parameters are never read
        first: dict[int, str] = {}
        self.names: dict[str, str] = {}  # every name, aliases included: the first one of the same
        for name, p in model.named_parameters(remove_duplicate=False):
            self.names[name] = first.setdefault(id(p), name)

    # Pruning

    def owner(self, name: str) -> tuple[nn.Module, str]:
        """The (module, attribute) pair of a parameter, as torch's functions take it."""
        path, _, attribute = name.rpartition(".")
        return self.hooked.get_submodule(path), attribute

    def apply(self, call: Call) -> Exception | None:
        """Let torch do what a call asks; return what it raised, with the model put back."""
        saved = _PruningState(self.hooked)
        owners = {name: self.owner(name) for name in call.names}
        weights = {name: getattr(*owner) for name, owner in owners.items()}
        try:
            perform(call, torch_prune, owners, weights, methods_of(torch_prune))
        except Exception as error:  # noqa: BLE001 - every kind of refusal is an answer here
            saved.restore()
            return error
        return None

    # What torch made of it

    def _pruned_parameters(self) -> Iterator[tuple[str, nn.Module, str]]:
        for name in dict.fromkeys(self.names.values()):
            module, attribute = self.owner(name)
            if f"{attribute}_orig" in module._parameters:
                yield name, module, attribute

    def masks(self) -> dict[str, Tensor]:
        """The mask of each pruned parameter, by its first name."""
        return {
            name: m.get_buffer(f"{attribute}_mask")
            for name, m, attribute in self._pruned_parameters()
        }

    def origs(self) -> dict[str, Tensor]:
        """The unmasked weight of each pruned parameter, by its first name."""
        return {
            name: m.get_parameter(f"{attribute}_orig")
            for name, m, attribute in self._pruned_parameters()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The state dict of the hooked model."""
        return self.hooked.state_dict()

    def _is_untied(self, name: str, module: nn.Module) -> bool:
        """Whether an alias of a parameter lives in another module, which torch leaves dense."""
        aliases = [alias for alias, first in self.names.items() if first == name]
        return any(self.owner(alias)[0] is not module for alias in aliases)

    @property
    def keys_agree(self) -> bool:
        """Whether torch's keys can express the masks: they cannot where a tied weight has one."""
        return not any(
            self._is_untied(name, module) for name, module, _ in self._pruned_parameters()
        )

    @property
    def hooks_act(self) -> bool:
        """Whether the hooked model reads each pruned parameter masked, wherever it is read."""
        modules = [module for _, module, _ in self._pruned_parameters()]
        stale = any(isinstance(module, NonDynamicallyQuantizableLinear) for module in modules)
        return self.keys_agree and not stale

    # Running

    def weights(self) -> dict[str, Tensor]:
        """What every parameter name reads in the forward: `orig * mask`, once per parameter."""
        masks, origs = self.masks(), self.origs()
        values: dict[str, Tensor] = {}
        for first in dict.fromkeys(self.names.values()):
            module, attribute = self.owner(first)
            masked = first in masks
            values[first] = (
                origs[first] * masks[first] if masked else module.get_parameter(attribute)
            )
        return {alias: values[first] for alias, first in self.names.items()}

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, train: bool) -> Any:
        """Run the model that the masks mean; batch statistics are updated as in a plain forward."""
        self.dense.train(train)
        buffers = {k: b for k, b in self.hooked.named_buffers() if not self._is_mask(k)}
        return functional_call(self.dense, {**self.weights(), **buffers}, args, kwargs)

    def _is_mask(self, key: str) -> bool:
        return key.removesuffix("_mask") in self.names and key.endswith("_mask")

    def hooked_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, train: bool) -> Any:
        """Run the model as torch's hooks do, right or wrong."""
        return self.hooked.train(train)(*args, **kwargs)

    def train(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        loss: Loss = loss_of,
        steps: int = 3,
        lr: float = 0.1,
        seed: int = 0,
        hooked: bool = False,
    ) -> list[Step]:
        """Train the parameters, the `_orig` tensors among them; see `step_by_step`."""
        run = self.hooked_forward if hooked else self.forward
        forward = partial(run, args, kwargs, train=True)
        return step_by_step(self.hooked, forward, loss=loss, steps=steps, lr=lr, seed=seed)


class _PruningState:
    """All that torch's pruning may edit in a model: attributes, hooks, and the hooks' methods."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(m, self._attributes(m)) for m in model.modules()]
        hooks = [hook for m in model.modules() for hook in m._forward_pre_hooks.values()]
        self.hooks = [(hook, dict(vars(hook))) for hook in hooks if hasattr(hook, "__dict__")]

    @staticmethod
    def _attributes(module: nn.Module) -> dict[str, Any]:
        containers = (dict, list, set)
        return {
            k: copy.copy(v) if isinstance(v, containers) else v for k, v in vars(module).items()
        }

    def restore(self) -> None:
        for holder, attributes in [*self.modules, *self.hooks]:
            vars(holder).clear()
            vars(holder).update(attributes)


def assert_alike_but_for_ties(program: Program, recipe: Recipe, masked: Program) -> None:
    """Run a recipe with its own ties: what goes is as much, and as large, as with torch's.

    Recipes of one magnitude rule alone are compared: what a later rule sees depends on which of
    the equal ones went. `masked` is the Program as the recipe left it with torch's ties.
    """
    rule = recipe.rules[0]
    if len(recipe.rules) > 1 or rule.ties == "torch" or rule.method != "l1_unstructured":
        return
    if not masked.masks:
        return
    ours = prune(program, recipe)
    names = [list(masked.masks)] if rule.scope == "global" else [[name] for name in masked.masks]
    for group in names:
        pair = _pruned_magnitudes(ours, group), _pruned_magnitudes(masked, group)
        if fault := difference(*pair):
            raise DifferenceError(
                f"the magnitudes pruned of {', '.join(group)} with ties = 'index': {fault} "
                "(fxprune first, then torch)"
            )


def _pruned_magnitudes(program: Program, names: list[str]) -> torch.Tensor:
    gone = [program.parameter(k)[program.masks[k] == 0].detach().abs().double() for k in names]
    return torch.cat([part.flatten() for part in gone]).sort().values
