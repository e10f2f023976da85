"""One region of a RegionalProgram: which graph it runs, and for which calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fxprune.errors import InputError
from fxprune.inputs import InputSpec
from fxprune.program import BOTH, EVAL, TRAIN
from fxprune.recording import normal, twins

if TYPE_CHECKING:
    from fxprune.regional import RegionalProgram

__all__ = ["Region"]


@dataclass(frozen=True)
class Region:
    """A submodule that was captured as a graph.

    Args:
        path: the submodule's name.
        inputs: what its graphs take.
        keys: the keys of its graphs in `RegionalProgram.graphs`, by mode.
        deciders: the submodules whose training flags choose the graph, where there are two.
        plain: whether the arguments of a call are put into one form first; not where hooks of the
            submodule see them.
        twins: which inputs must be the same tensor, see `fxprune.recording.twins`; empty where
            that does not matter.
    """

    path: str
    inputs: InputSpec
    keys: Mapping[str, str]
    deciders: tuple[str, ...]
    plain: bool
    twins: tuple[int, ...]

    def fit(
        self, program: RegionalProgram, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Any] | None:
        """Return the run of the graph that a call asks for, or None where none is right for it.

        Args:
            program: whose graphs and flags count.
            args: positional inputs of the submodule.
            kwargs: its keyword inputs.
        """
        key = self._key(program)
        if key is None:
            return None
        if self.plain:
            args, kwargs = normal(program.get_submodule(self.path), args, kwargs)
        try:
            leaves = self.inputs.flatten(args, kwargs)
        except InputError:
            return None
        if self.twins and twins(leaves) != self.twins:
            return None
        return lambda: _run(program, key, leaves)

    def _key(self, program: RegionalProgram) -> str | None:
        if BOTH in self.keys:
            return self.keys[BOTH]
        flags = {program.get_submodule(name).training for name in self.deciders}
        return self.keys[TRAIN if flags.pop() else EVAL] if len(flags) == 1 else None


def _run(program: RegionalProgram, key: str, leaves: list[Any]) -> Any:
    # A graph may switch grad mode in a region; an error inside must not leave it switched.
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        found = getattr(program, f"_forward_{key}")(*leaves)
    return program.captured.outputs[key].unflatten(found)
