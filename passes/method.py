"""Masks from a user's own subclass of torch.nn.utils.prune.BasePruningMethod."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.nn.utils.prune import BasePruningMethod

from fxprune.errors import PassError, PassTypeError
from fxprune.program import Program, parameters
from fxprune.ranking import Peers, combined_mask
from fxprune.rewrite import Analysis, Facts, Importance, Methods, NewMasks, Selection, masked_value


@dataclass(frozen=True)
class ComputeMasks(Analysis):
    """Let a method's `compute_mask` decide, as torch.nn.utils.prune calls it.

    The fact Methods has its instance by the rule's name; else `method`, "package.module:Class", is
    imported and made with `amount` and `args`. In global scope it sees all parameters at once.
    """

    name: ClassVar[str] = "method"
    needs: ClassVar = (Selection, Importance, Methods)
    gives: ClassVar = (NewMasks,)

    rule: str
    method: str
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    amount: float | int | None = None
    scope: str = "local"

    def run(self, program: Program, facts: Facts) -> NewMasks:
        """Return the masks, computed now: a method may draw random numbers."""
        if facts.get(Peers) is not None:
            raise PassError(
                f"rule {self.rule!r}: a method of one's own sees whole parameters, and may not do "
                "the same in each process; take a method of fxprune, or give the masks"
            )
        method = facts[Methods].by_rule.get(self.rule) or self._make()
        importance = facts[Importance]
        values = {
            site.name: masked_value(program, site, importance) for site in facts[Selection].sites
        }
        masks = self._masks(program, method, values)

        def make() -> Iterator[tuple[str, torch.Tensor]]:
            yield from masks.items()

        return NewMasks(tuple(values), make)

    def _masks(
        self, program: Program, method: Any, values: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        old = parameters.masks(program)
        if self.scope == "local" or not values:
            return {name: combined_mask(method, values[name], old.get(name)) for name in values}
        if method.PRUNING_TYPE != "unstructured":
            raise PassTypeError(
                f"global scope takes unstructured methods only; {type(method).__name__} is "
                f"{method.PRUNING_TYPE!r}"
            )
        joined = torch.cat([value.reshape(-1) for value in values.values()])
        masks = [old.get(name, torch.ones_like(value)) for name, value in values.items()]
        mask = combined_mask(method, joined, torch.cat([mask.reshape(-1) for mask in masks]))
        parts = mask.split([value.numel() for value in values.values()])
        pairs = zip(values.items(), parts, strict=True)
        return {name: part.view(value.shape) for (name, value), part in pairs}

    def _make(self) -> Any:
        module, _, attribute = self.method.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise PassError(f"rule {self.rule!r}: method {self.method!r}: {error}") from error
        if not (isinstance(found, type) and issubclass(found, BasePruningMethod)):
            raise PassTypeError(
                f"rule {self.rule!r}: {self.method!r} is no subclass of "
                "torch.nn.utils.prune.BasePruningMethod"
            )
        amount = {} if self.amount is None else {"amount": self.amount}
        try:
            return found(**amount, **self.args)
        except Exception as error:  # whatever the user's class raises
            raise PassError(f"rule {self.rule!r}: {self.method!r}: {error}") from error
