"""Faults in how channels are cut out, and how constant branches are folded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from tests.mutants.cutting import Cutting
from tests.mutants.hunting import Hunt, Pool, hunt
from tests.mutants.mutant import Mutant

PROGRAMS = 6


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


def off_by_one(original: Any) -> Any:
    def moved(self: Any, whole: Any, places: Any) -> Any:
        found = original(self, whole, places)
        return np.maximum(found - 1, 0)

    return moved


def nothing_read(original: Any) -> Any:
    return lambda read, labels, stays: np.zeros(len(read.channels), dtype=np.bool_)


def twofold(original: Any) -> Any:
    return lambda node, value: original(node, value) * 2


def joined_by_nothing(original: Any) -> Any:
    def fold(rewriter: Any, flow: Any, node: Any, user: Any) -> None:
        other = next(arg for arg in user.args if arg is not node)
        rewriter.replace_uses(user, other)

    return fold


def weights_alone(original: Any) -> Any:
    def cut(self: Any, name: str, value: Any) -> None:
        if not name.endswith("bias"):
            original(self, name, value)

    return cut


SURGERY = "fxprune.channels.surgery:Surgery."
FOLD = "fxprune.passes.fold_branches:"
MUTANTS = (
    Mutant("bias not absorbed", f"{SURGERY}absorb", not_done),
    Mutant("bias absorbed twice", f"{SURGERY}absorb", twice),
    Mutant("wrong group count", f"{SURGERY}set_role", counting(lambda n: 1)),
    Mutant("group count of the uncut", f"{SURGERY}set_count", not_done),
    Mutant("wrong cat offset", "fxprune.channels.rules.parts:_atoms", rolled),
    Mutant("wrong view size", f"{SURGERY}set_sizes", sizes_of_the_uncut),
    Mutant("parts of the uncut", f"{SURGERY}set_parts", not_done),
    Mutant("slice off by one", f"{SURGERY}_new_places", off_by_one),
    Mutant("kept channels off by one", f"{SURGERY}index", shifted),
    Mutant("live channels cut", "fxprune.channels.removal:_is_read", nothing_read),
    Mutant("sums not tied", "fxprune.channels.atoms:Atoms.tie", not_done),
    Mutant("one operator told", f"{SURGERY}run", first_only),
    Mutant("branch folded to another constant", f"{FOLD}_tensor", twofold),
    Mutant("branch folded to nothing", f"{FOLD}_fold", joined_by_nothing),
    Mutant("cut channels of a bias kept", f"{SURGERY}_cut_tensor", weights_alone),
)


@cache
def _pool() -> Pool:
    """Programs to cut, captured once a process."""
    return Pool([Cutting("cut", None, number) for number in range(PROGRAMS)])  # pyright: ignore[reportArgumentType]


def hunt_one(mutant: Mutant) -> Hunt:
    """Plant one fault, and compile with channels cut until the checker says so."""
    return hunt(mutant, _pool())
