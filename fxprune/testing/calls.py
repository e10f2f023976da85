"""Pruning calls as data: what `torch.nn.utils.prune` or `fxprune.functional` is asked to do.

A recipe is put into such calls, where torch has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import PassError
from fxprune.program import Program
from fxprune.recipe import Recipe, Rule, verdicts

STRUCTURED = ("random_structured", "ln_structured")
KINDS = (
    *("identity", "random_unstructured", "l1_unstructured", *STRUCTURED, "global_unstructured"),
    *("custom_from_mask", "own_method", "remove"),
)


class EveryOther:
    """The tutorial's own method: prunes every other entry that is alive."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask, as torch's BasePruningMethod asks."""
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


class FirstChannel:
    """An own structured method: prunes the first channel that is alive along `dim`."""

    PRUNING_TYPE = "structured"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask, as torch's BasePruningMethod asks."""
        mask = default_mask.clone()
        mask.index_fill_(self.dim, torch.arange(min(1, t.shape[self.dim])), 0)
        return mask


class Thirds:
    """An own method over all entries, dead ones too, that draws and scores: the lowest third."""

    PRUNING_TYPE = "global"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask, as torch's BasePruningMethod asks."""
        noisy = t.abs().float() + 0.1 * torch.rand(t.shape)
        return default_mask * (noisy > noisy.flatten().quantile(1 / 3)).to(default_mask.dtype)


OWN = {"every_other": EveryOther, "channels": FirstChannel, "thirds": Thirds}


def methods_of(prune: Any) -> dict[str, Any]:
    """The method classes of torch.nn.utils.prune or fxprune.functional, and a user's own on it."""
    own = {k: type(c.__name__, (c, prune.BasePruningMethod), {}) for k, c in OWN.items()}
    ready = {
        "l1": prune.L1Unstructured,
        "random": prune.RandomUnstructured,
        "identity": prune.Identity,
    }
    return {**ready, **own}


@dataclass(frozen=True, repr=False)
class Call:
    """One pruning call; its repr leaves out what has the default value.

    Attributes:
        kind: one of `KINDS`.
        names: full parameter names: one, or for `global_unstructured` one or more.
        amount: share or count.
        method: for `global_unstructured` and `own_method`: a key of `methods_of`.
        n: norm of `ln_structured`.
        dim: channel dimension of structured kinds.
        seed: given to `torch.manual_seed` before the call; None: the generator goes on.
        scores_seed: draw importance scores from this seed; None: the weights are the scores.
        mask_seed: draw the mask of `custom_from_mask` from this seed.
        keep: share of ones in that mask.
        soft: let that mask scale what it keeps, as torch allows.
        misshapen: give a mask, or scores, of another shape than the parameter's.
    """

    kind: str
    names: tuple[str, ...]
    amount: float | int = 0.5
    method: str = "l1"
    n: int | float | str = 2
    dim: int = 0
    seed: int | None = 0
    scores_seed: int | None = None
    mask_seed: int = 0
    keep: float = 0.5
    soft: bool = False
    misshapen: bool = False

    def __repr__(self) -> str:
        drawn = [(f.name, getattr(self, f.name), f.default) for f in fields(self)[2:]]
        changed = [f"{name}={value!r}" for name, value, default in drawn if value != default]
        return f"Call({', '.join([repr(self.kind), repr(self.names), *changed])})"

    def scores(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Importance scores by name, with the shape and dtype of the given weights."""
        if self.scores_seed is None:
            return None
        generator = torch.Generator().manual_seed(self.scores_seed)
        shapes = {name: self.shape_for(weights[name]) for name in self.names}
        drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return {name: scores.to(weights[name].dtype) for name, scores in drawn.items()}

    def mask(self, weight: Tensor) -> Tensor:
        """The mask of `custom_from_mask`."""
        generator = torch.Generator().manual_seed(self.mask_seed)
        drawn = torch.rand(self.shape_for(weight), generator=generator)
        kept = drawn < self.keep
        return kept * drawn.to(weight.dtype) if self.soft else kept

    def shape_for(self, weight: Tensor) -> tuple[int, ...]:
        """Return the shape of a mask or of scores for a parameter."""
        return (*weight.shape, 2) if self.misshapen else tuple(weight.shape)

    def method_arguments(self) -> dict[str, Any]:
        """The keyword arguments with which the call's method is made."""
        if self.method in ("l1", "random"):
            return {"amount": self.amount}
        return {"dim": self.dim} if self.method == "channels" else {}


def perform(
    call: Call,
    prune: Any,
    owners: Mapping[str, tuple[Any, str]],
    weights: Mapping[str, Tensor],
    methods: Mapping[str, Any],
) -> None:
    """Do what a call asks by torch.nn.utils.prune, or what has its functions, under its seed.

    `owners` are its (module, name) pairs by full name, `weights` have the shapes and dtypes.
    """
    scores = call.scores(weights)
    if call.seed is not None:
        torch.manual_seed(call.seed)
    if call.kind == "global_unstructured":
        pairs = [owners[name] for name in call.names]
        by_pair = None if scores is None else {owners[k]: v for k, v in scores.items()}
        prune.global_unstructured(
            pairs, methods[call.method], importance_scores=by_pair, **call.method_arguments()
        )
        return
    name = call.names[0]
    own = {} if scores is None else {"importance_scores": scores[name]}
    module, attribute = owners[name]
    match call.kind:
        case "random_unstructured":
            prune.random_unstructured(module, attribute, call.amount)
        case "l1_unstructured":
            prune.l1_unstructured(module, attribute, amount=call.amount, **own)
        case "random_structured":
            prune.random_structured(module, attribute, call.amount, call.dim)
        case "ln_structured":
            prune.ln_structured(module, attribute, call.amount, call.n, call.dim, **own)
        case "custom_from_mask":
            prune.custom_from_mask(module, attribute, call.mask(weights[name]))
        case "own_method":
            methods[call.method].apply(module, attribute, **own, **call.method_arguments())
        case _:  # identity, remove
            getattr(prune, call.kind)(module, attribute)


_GLOBAL = {"l1_unstructured": "l1", "random_unstructured": "random"}
_METHODS = ("identity", "random_unstructured", "l1_unstructured", *STRUCTURED)


def calls_of(program: Program, recipe: Recipe) -> Iterator[tuple[int | None, tuple[Call, ...]]]:
    """Yield the seed and the calls of each rule, or of all rules of a group, each that selects."""
    done: set[str] = set()
    for rule in recipe.rules:
        if fault := counterpart_fault(rule):
            raise PassError(f"rule {rule.name!r} cannot be held to torch.nn.utils.prune: {fault}")
        if rule.group in done:
            continue
        rules = [rule]
        if rule.group is not None:
            done.add(rule.group)
            rules = [each for each in recipe.rules if each.group == rule.group]
        names = _select_names(program, rules)
        if names:
            yield rule.seed, tuple(_calls(rule, names))


def counterpart_fault(rule: Rule) -> str | None:
    """Return why torch.nn.utils.prune has no counterpart of a rule; None where it has one."""
    if rule.coupled:
        return "torch prunes no channels together"
    if rule.method not in _METHODS:
        return f"its method is {rule.method or rule.score!r}; torch has {', '.join(_METHODS)}"
    return None


def with_torchs_ties(recipe: Recipe) -> Recipe:
    """Return the recipe with `ties = "torch"` in all rules that rank."""
    rules = tuple(
        rule.model_copy(update={"ties": "torch"}) if rule.amount is not None else rule
        for rule in recipe.rules
    )
    return recipe.model_copy(update={"rules": rules})


def _select_names(program: Program, rules: Sequence[Rule]) -> list[str]:
    taken = {v.site.name for rule in rules for v in verdicts(program, rule) if v.refusal is None}
    return [name for name in program.aliases if name in taken]


def _calls(rule: Rule, names: Sequence[str]) -> Iterator[Call]:
    method, amount = str(rule.method), 0 if rule.amount is None else rule.amount
    if rule.scope == "global":
        how = _GLOBAL[method]
        yield Call("global_unstructured", tuple(names), amount=amount, method=how, seed=None)
        return
    options = {"n": rule.n} if method == "ln_structured" else {}
    if rule.granularity_name == "channel":
        options["dim"] = rule.dim
    for name in names:
        yield Call(method, (name,), amount=amount, seed=None, **options)  # pyright: ignore
