"""Passes with one fault each, for the checks to find; `DropAny` is a copy of an example's pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import torch
from torch.fx.node import Node

from fxprune.errors import PassError
from fxprune.program.ops import canonical_name
from fxprune.program.program import Program
from fxprune.rewrite.facts import NewMasks, Scores, ScoreSource, Selection
from fxprune.rewrite.passes import Analysis, Facts, Rewrite
from fxprune.rewrite.pattern import Refusal
from fxprune.rewrite.rewriter import Rewriter, RewriteRule, rule

KNOWN = ("abs", "ceil", "floor", "relu", "tanh", "gelu")


def _rule_for(op: str) -> RewriteRule:
    @rule(f"{op}(y)", name=f"drop-repeated-{op}")
    def drop_repeat(rw: Rewriter, node: Node, y: Any) -> Node | Refusal:
        """Read y where it was read through the same operator again."""
        # The fault: it is enough that y is one of the operators, whichever.
        if not isinstance(y, Node) or canonical_name(y.target) not in KNOWN:
            return Refusal(f"what it reads is no {op}", node)
        rw.replace_uses(node, y)
        rw.erase(node)
        return y

    return drop_repeat


RULES = {op: _rule_for(op) for op in ("abs", "ceil", "floor", "relu")}


@dataclass(frozen=True)
class DropAny(Rewrite):
    """Do an operator once where it is done twice in a row, as in relu(relu(x))."""

    name: ClassVar[str] = "drop-any"
    promise: ClassVar[str] = "same"

    ops: Sequence[str] = tuple(RULES)

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Drop the repeats in every graph."""
        rewriter.apply([RULES[op] for op in self.ops])


@rule("linear(x, W, *)", name="wrap")
def wrap(rw: Rewriter, node: Node, x: Any, W: Node) -> Node:  # noqa: N803 - a pattern's name
    """Take the absolute value of a result, every time that it is asked for."""
    made = rw.call(torch.ops.aten.abs.default, (node,), node.next)
    rw.replace_uses(node, made)
    return made


@dataclass(frozen=True)
class Wraps(Rewrite):
    """Edits what it has edited before."""

    name: ClassVar[str] = "wraps"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        rewriter.apply([wrap])


@dataclass(frozen=True)
class ChangesTensors(Rewrite):
    """Writes into a tensor that it shares with the caller's Program."""

    name: ClassVar[str] = "changes-tensors"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        with torch.no_grad():
            for parameter in rewriter.program.parameters():
                parameter.fill_(0.25)


@dataclass(frozen=True)
class DrawsAnyway(Rewrite):
    """Draws from the global generator."""

    name: ClassVar[str] = "draws-anyway"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        torch.rand(1)


RUNS = count()


@dataclass(frozen=True)
class Counts(Rewrite):
    """Does something else each time: it multiplies by how often it has run."""

    name: ClassVar[str] = "counts"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        at = next(RUNS)
        for graph in rewriter.program.graphs.values():
            for node in [n for n in graph.nodes if canonical_name(n.target) == "linear"]:
                made = rewriter.call(torch.ops.aten.mul.Tensor, (node, at), node.next)
                rewriter.replace_uses(node, made)


@dataclass(frozen=True)
class MasksHalfway(Rewrite):
    """Gives a parameter a mask that no node reads."""

    name: ClassVar[str] = "masks-halfway"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        name = next(iter(rewriter.program.aliases))
        rewriter.add_mask(name, torch.ones_like(rewriter.program.parameter(name)))


@dataclass(frozen=True)
class WritesAndMasks(MasksHalfway):
    """Writes into a tensor before it edits."""

    name: ClassVar[str] = "writes-and-masks"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        with torch.no_grad():
            next(iter(rewriter.program.parameters())).fill_(0.25)
        for graph in rewriter.program.graphs.values():
            node = next(n for n in graph.nodes if n.op == "output")
            rewriter.read("training", node)


@dataclass
class NotFrozen(Analysis):
    """A pass whose options can be changed."""

    name: ClassVar[str] = "not-frozen"
    gives: ClassVar = (NewMasks,)

    def run(self, program: Program, facts: Facts) -> NewMasks:
        def make() -> Iterator[tuple[str, torch.Tensor]]:
            yield from ()

        return NewMasks((), make)


@dataclass(frozen=True)
class EditsFacts(Rewrite):
    """Puts another fact in the place of the one that it was given."""

    name: ClassVar[str] = "edits-facts"
    needs: ClassVar = (Selection,)

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        facts.put(Selection(()))


@dataclass(frozen=True)
class RefusesAll(Rewrite):
    """Never edits."""

    name: ClassVar[str] = "refuses-all"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        raise PassError("it takes nothing")


@dataclass(frozen=True)
class CrashesOnNorms(Rewrite):
    """Crashes where there is a layer norm."""

    name: ClassVar[str] = "crashes-on-norms"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        for node in rewriter.program.graph.nodes:
            if canonical_name(node.target) == "layer_norm":
                raise KeyError("layer_norm")


class Values(ScoreSource):
    """Scores of a tensor that is alive everywhere."""

    def __init__(self, values: torch.Tensor, alive: int) -> None:
        self.values, self.units, self.alive = values, len(values), alive

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        return None

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        return self.values[start:stop]


@dataclass(frozen=True)
class ScoreSigned(Analysis):
    """Says that it prunes by magnitude, and ranks by sign; dead entries have a score, too."""

    name: ClassVar[str] = "signed"
    needs: ClassVar = (Selection,)
    gives: ClassVar = (Scores,)
    torch_method: ClassVar[str] = "l1_unstructured"

    def run(self, program: Program, facts: Facts) -> Scores:
        found: dict[str, ScoreSource] = {}
        for site in facts[Selection].sites:
            values = program.value(site.name).flatten()
            mask = program.masks[site.name].flatten() if site.name in program.masks else None
            kept = values if mask is None else values[mask == 1]
            found[site.name] = Values(kept, len(kept))
        return Scores(found)


@dataclass(frozen=True)
class ScoreHalf(Analysis):
    """Gives scores for half of what it says."""

    name: ClassVar[str] = "half"
    needs: ClassVar = (Selection,)
    gives: ClassVar = (Scores,)

    def run(self, program: Program, facts: Facts) -> Scores:
        found: dict[str, ScoreSource] = {}
        for site in facts[Selection].sites:
            values = program.value(site.name).flatten().abs()
            found[site.name] = Values(values[: len(values) // 2], len(values))
        return Scores(found)
