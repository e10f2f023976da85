"""Fold masks into parameters, or drop them: both are ways back to plain weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.fx.node import Node

from fxprune.errors import NotPrunedError
from fxprune.program import Program, RuleRecord, is_product, like, parameter_of, parameters
from fxprune.rewrite import Facts, Refusal, Rewrite, Rewriter, rule


@rule("mul(W, m)", name="fold-mask")
def fold_mask(rw: Rewriter, node: Node, W: Node, m: Node) -> Node | Refusal:  # noqa: N803
    """Read W itself where it was read times a mask that the tree has no longer."""
    if not is_product(rw.program, node):
        return Refusal("the factor is not the parameter's mask", node)
    name = parameter_of(rw.program, W)
    if name is None or name in parameters.masks(rw.program):
        return Refusal("the parameter keeps its mask", node)
    rw.retarget(W, name)
    rw.replace_uses(node, W)
    rw.erase(node)
    if not m.users:
        rw.erase(m)
    return W


@dataclass(frozen=True)
class FoldMasks(Rewrite):
    """Multiply masks into their parameters (torch.nn.utils.prune.remove).

    Without `names`, all that are masked. With zeros = "keep", zeros are as multiplication leaves
    them (-1 * 0 is -0.0); with "clean", +0.0 stands wherever the mask is 0, whatever stood there.
    With `source_order`, parameters go back to their place in the source's order.
    """

    name: ClassVar[str] = "finalize"
    effect: ClassVar[str] = "folds"

    names: tuple[str, ...] = ()
    zeros: str = "keep"
    source_order: bool = True

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Fold the masks."""
        for name in masked_names(rewriter.program, self.names):
            rewriter.drop_mask(name, self._product(rewriter.program, name))
        rewriter.apply([fold_mask])
        if self.source_order:
            rewriter.restore_order()

    def _product(self, program: Program, name: str) -> torch.Tensor:
        mask, value = parameters.masks(program)[name], parameters.value(program, name)
        if self.zeros == "clean":
            # clone keeps the memory format, which masked_fill would take from the mask.
            return value.clone().masked_fill_(like(mask, value) == 0, 0)
        return value


def masked_names(program: Program, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first names of the named parameters, or of all that are masked.

    One that has no mask raises NotPrunedError.
    """
    for name in names:
        parameters.owner(program, name)
        if name not in parameters.masks(program):
            raise NotPrunedError(
                f"parameter {name!r} has to be pruned before its mask can be removed; masked are "
                f"{', '.join(parameters.masks(program)) or 'none'}"
            )
    return tuple(dict.fromkeys(program.captured.first[name] for name in names)) or tuple(
        parameters.masks(program)
    )


@dataclass(frozen=True)
class UnmaskParameters(Rewrite):
    """Drop masks; the parameters are what they were, or what training made of them.

    Without `names`, those of all that are masked.
    """

    name: ClassVar[str] = "unmask"
    effect: ClassVar[str] = "unmasks"

    names: tuple[str, ...] = ()

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Drop the masks, and what the records say of these parameters."""
        program = rewriter.program
        names = masked_names(program, self.names)
        for name in names:
            rewriter.drop_mask(name)
        program.captured.records = tuple(_without(r, names) for r in program.captured.records)
        rewriter.apply([fold_mask])
        rewriter.restore_order()


def _without(record: RuleRecord, names: tuple[str, ...]) -> RuleRecord:
    kept = tuple(p for p in record.parameters if p.name not in names)
    return replace(record, parameters=kept)
