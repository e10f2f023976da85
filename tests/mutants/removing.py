"""Faults in how channels are cut out."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.program import Program
from tests.mutants.hunting import Hunt, Pool, hunt
from tests.mutants.mutant import Mutant
from tests.mutants.programs import Drawn

__all__ = ["MUTANTS", "SKIPPED", "hunt_one"]

PROGRAMS = 8


class Channels(nn.Module):
    """Has each operator whose arguments count or place channels, and constants to absorb."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.skip = nn.Conv2d(8, 8, 1)
        self.other = nn.Conv2d(2, 6, 3)
        self.after = nn.Conv2d(14, 9, 1)
        self.mixed = nn.Linear(9 * 4, 8)
        self.halves = nn.Linear(8, 8)
        self.last = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = self.skip(y) + torch.sigmoid(self.depth(y))
        y = self.after(torch.cat([y, self.other(x)], dim=1))
        y = torch.sigmoid(self.mixed(torch.tanh(y).reshape(-1, 36)))
        left, right = torch.chunk(torch.tanh(self.halves(y)), 2, dim=1)
        return self.last(torch.cat([right, left, left[:, 1:3], y[:, 2:5], y[:, 5:6]], dim=1))


class Cutting(Drawn):
    """A network whose channels are pruned, finalized and cut."""

    def model(self) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.number)
            net = Channels().eval()
            with torch.no_grad():
                for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
                    norm.weight.normal_()
                    norm.bias.normal_()
                    norm.running_mean = torch.randn(8)
            return net, (torch.randn(3, 2, 4, 4),), {}

    def recipe(self) -> dict[str, Any]:
        rule = {"method": "ln_structured", "n": 2, "dim": 0, "amount": 0.4}
        names = ["first", "depth", "skip", "other", "after", "mixed", "halves"]
        return {
            "rule": [{**rule, "select": [f"{name}.weight" for name in names]}],
            "finalize": {},
        }


def not_done(original: Any) -> Any:
    return lambda self, *args: None


def twice(original: Any) -> Any:
    def absorb(self: Any, sink: Any) -> None:
        original(self, sink)
        if self.absorbed.pop(sink.key, sink) is None:
            original(self, sink)

    return absorb


def counting(change: Callable[[int], int]) -> Callable[[Any], Any]:
    def mutate(original: Any) -> Any:
        def set_role(self: Any, node: Any, role: str, value: Any) -> None:
            original(self, node, role, change(value) if role == "groups" else value)

        return set_role

    return mutate


def shifted(original: Any) -> Any:
    def index(self: Any, axis: Any) -> Tensor:
        kept = original(self, axis)
        size = int(np.prod([factor.size for factor in axis]))
        return ((kept + 1) % size).sort().values if self.is_cut(axis) else kept

    return index


def rolled(original: Any) -> Any:
    return lambda flow, node, part: np.roll(original(flow, node, part), 1)


def sizes_of_the_uncut(original: Any) -> Any:
    return lambda self, node, role, axes: None


def first_only(original: Any) -> Any:
    """Tell only the first operator of several that its arguments count channels."""

    def run(self: Any, stored: Any, flows: Any) -> None:
        flows = list(flows)
        for flow in flows:
            del flow.edits[1:]
        original(self, stored, flows)

    return run


def without_reason(text: str) -> Callable[[Any], Any]:
    """Let no atom stay for one reason."""

    def mutate(original: Any) -> Any:
        def pin(self: Any, atoms: Any, reason: str, node: Any) -> None:
            if text not in reason:
                original(self, atoms, reason, node)

        return pin

    return mutate


def off_by_one(original: Any) -> Any:
    def moved(self: Any, whole: Any, places: Any) -> Any:
        found = original(self, whole, places)
        return np.maximum(found - 1, 0)

    return moved


SURGERY = "fxprune.surgery:Surgery."
_ALL = (
    Mutant("bias not absorbed", f"{SURGERY}absorb", not_done),
    Mutant("bias absorbed twice", f"{SURGERY}absorb", twice),
    Mutant("wrong group count", f"{SURGERY}set_role", counting(lambda n: 1)),
    Mutant("group count of the uncut", f"{SURGERY}set_count", not_done),
    Mutant("wrong cat offset", "fxprune.passes.flow_joins:_atoms", rolled),
    Mutant("wrong view size", f"{SURGERY}set_sizes", sizes_of_the_uncut),
    Mutant("parts of the uncut", f"{SURGERY}set_parts", not_done),
    Mutant("slice off by one", f"{SURGERY}_moved", off_by_one),
    Mutant("kept channels off by one", f"{SURGERY}index", shifted),
    Mutant("live channels cut", "fxprune.atoms:Atoms.pin", without_reason("read with weights")),
    Mutant("sums not tied", "fxprune.atoms:Atoms.tie", not_done),
    Mutant("one operator told", f"{SURGERY}run", first_only),
)
_THERE = importlib.util.find_spec("fxprune.surgery") is not None
MUTANTS: tuple[Mutant, ...] = _ALL if _THERE else ()
SKIPPED = None if _THERE else f"{len(_ALL)} faults in how channels are cut: skipped, nothing cuts"


class Cuts(Pool):
    """Compiles Programs, and cuts what is dead in them."""

    def compiled(self, draw: Drawn) -> Program:
        shrinking: Any = importlib.import_module("fxprune.shrinking")
        return shrinking.shrink(super().compiled(draw))


def hunt_one(mutant: Mutant) -> Hunt:
    """Plant one fault, and cut channels until the checker says so."""
    return hunt(mutant, Cuts([Cutting("cut", None, number) for number in range(PROGRAMS)]))  # pyright: ignore[reportArgumentType]
