"""Cases of the parity tests: an architecture, and a sequence of pruning calls on its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hypothesis import strategies as st
from torch import Tensor

from fxprune.testing.architecture import Arch, build
from fxprune.testing.calls import Call
from fxprune.testing.drawing import architectures, pruning_sequences


@dataclass(frozen=True)
class Case:
    """An architecture and what is to be done to its parameters, in order."""

    arch: Arch
    calls: tuple[Call, ...]


@lru_cache(maxsize=512)
def canonical(arch: Arch) -> dict[str, Tensor]:
    """The parameters of an architecture by their first name, aliases left out."""
    return dict(build(arch).model.named_parameters())


@st.composite
def sequences(draw: st.DrawFn, count: int, max_layers: int = 5) -> tuple[Case, ...]:
    """Several sequences of calls on one architecture, whose capture they can share."""
    arch = draw(architectures(max_layers=max_layers, non_finite=True))
    return tuple(Case(arch, draw(pruning_sequences(canonical(arch)))) for _ in range(count))


def cases(max_layers: int = 5) -> st.SearchStrategy[Case]:
    """An architecture and one sequence of calls on it."""
    return sequences(1, max_layers).map(lambda drawn: drawn[0])
