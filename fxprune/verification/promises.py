"""Promises of a rewrite: equal or close outputs, the same keys, and what training needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

from fxprune.errors import MissingParameterError
from fxprune.program import TRAIN, Program, example_of, fork, parameters
from fxprune.rewrite import BOUND
from fxprune.verification.comparison import verify
from fxprune.verification.trials import Side, Trial, reproducible

PROMISES = ("same", "close", "changes")

# Above this many parameters one input is drawn in each mode, else three, of three batch sizes.
_LARGE = 4_000_000


@dataclass(frozen=True)
class PromiseCheck:
    """A fork of a Program as a rewrite finds it, to compare with what it leaves."""

    program: Program
    promise: str
    trained: dict[str, bool]

    @classmethod
    def of(cls, program: Program, promise: str) -> PromiseCheck:
        """Remember a Program that is about to be edited."""
        return cls(fork(program), promise, _requires_grad(program))

    def violation(self, after: Program, *, bound: float = BOUND, trials: int = 3) -> str | None:
        """Return how the promise is broken; None where it is kept.

        A promise of equal outputs is one of equal keys, names and training too: a checkpoint loads
        as before, and every parameter that had a gradient gets one. `trials` inputs are drawn for
        each mode.
        """
        close = self.promise == "close"
        change = None if close else next(self._changes(after), None)
        if change is not None:
            return f"promised equal outputs, but {change}"
        large = sum(p.numel() for p in after.parameters()) > _LARGE
        count = 1 if large else trials
        certificate = verify(after, self.program, promise=self.promise, bound=bound, trials=count)
        if not certificate:
            what = "outputs that are close in float64" if close else "equal outputs"
            return f"promised {what}, but they differ or cannot be compared: {certificate}"
        lost = None if close else self._name_without_gradient(after)
        return None if lost is None else f"promised equal outputs, but {lost!r} gets no gradient"

    def _changes(self, after: Program) -> Iterator[str]:
        keys = _keys(self.program)
        for key in sorted(keys ^ _keys(after)):
            yield f"the key {key!r} {'went' if key in keys else 'came'}"
        for name, trained in _requires_grad(after).items():
            if trained != self.trained.get(name, trained):
                yield f"{name!r} is {'' if trained else 'not '}trained"
        flags = {path: module.training for path, module in self.program.named_modules()}
        for path, module in after.named_modules():
            if module.training != flags.get(path, module.training):
                yield f"the training flag of {path!r} is another one"
        first = self.program.captured.first
        owners = {id(parameters.parameter(self.program, name)): of for name, of in first.items()}
        for name, of in first.items():
            owner = owners.get(id(parameters.parameter(after, name)), of)
            if owner != of:
                yield f"{name!r} is the tensor that {owner!r} was"

    def _name_without_gradient(self, after: Program) -> str | None:
        """Return a parameter that a step in train mode reached before, and does not now."""
        if not self.program.captured.inputs.drawable:
            return None
        before, now = (_names_with_gradient(program) for program in (self.program, after))
        lost = [] if before is None or now is None else sorted(before - now)
        return lost[0] if lost else None


def _keys(program: Program) -> frozenset[str]:
    names = program.captured.first
    factors = {f"{n}{end}" for n in names if n in parameters.masks(program) for end in _FACTORS}
    return frozenset({*names, *(key for key in program.state_dict() if key not in factors)})


_FACTORS = ("_orig", "_mask")


def _requires_grad(program: Program) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for name in program.captured.first:
        try:
            found[name] = parameters.parameter(program, name).requires_grad
        except MissingParameterError:
            continue
    return found


def _names_with_gradient(program: Program) -> set[str] | None:
    """Return the parameters that get a gradient in a step; None where there is no such step."""
    args, kwargs = example_of(program, batch=2)
    trial = Trial(TRAIN, "", args, kwargs, drawn=True)
    module, args, kwargs = Side(program, wide=False).prepare(trial)
    module.zero_grad(set_to_none=True)
    try:
        with reproducible(0):
            leaves = pytree.tree_leaves(module(*args, **kwargs))
            ends = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
            if ends:
                torch.stack([end.abs().sum().double() for end in ends]).sum().backward()
    except Exception:  # noqa: BLE001 - it cannot be trained so, and outputs were compared
        return None
    names = module.captured.first
    return {name for name in names if parameters.parameter(module, name).grad is not None}
