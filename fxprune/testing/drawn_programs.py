"""Strategies for Programs, and for inputs to run them on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from fxprune.compiler import capture, prune
from fxprune.errors import InputError
from fxprune.program import Program
from fxprune.recipe import Recipe
from fxprune.testing.architecture import Arch, build
from fxprune.testing.drawn_networks import architectures
from fxprune.testing.drawn_recipes import recipes
from fxprune.testing.writing_code import network_code, recipe_code
from fxprune.transaction import copied

__all__ = ["Drawn", "calibrations", "captured", "drawn", "programs"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@lru_cache(maxsize=256)
def captured(arch: Arch) -> Program:
    """Capture a drawn network, once: that takes longer than most of what is done with it."""
    return capture(*build(arch))


@dataclass(frozen=True)
class Drawn:
    """A Program as data.

    Args:
        arch: the network.
        recipe: by which it is masked; None for not.
    """

    arch: Arch
    recipe: Recipe | None = None

    def program(self) -> Program:
        """Make the Program, the same each time."""
        if self.recipe is None:
            return copied(captured(self.arch))
        return prune(captured(self.arch), self.recipe)

    def code(self) -> str:
        """Write a script that makes the Program, and leaves it as `program`."""
        lines = [network_code(self.arch), "program = fxprune.capture(model, args, kwargs)"]
        if self.recipe is not None:
            lines.append(f"recipe = {recipe_code(self.recipe)}")
            lines.append("program = fxprune.prune(program, recipe)")
        return "\n".join(lines).replace(_TORCH, f"{_TORCH}\n\nimport fxprune", 1)


_TORCH = "from torch import Tensor, nn"


@st.composite
def drawn(
    draw: st.DrawFn,
    *,
    networks: st.SearchStrategy[Arch] | None = None,
    masked: bool | None = None,
) -> Drawn:
    """Draw Programs as data; see `programs`."""
    mixed = architectures() | architectures(max_layers=2, runs=True)
    arch = draw(mixed if networks is None else networks)
    if masked or (masked is None and draw(st.booleans())):
        seeded = recipes(captured(arch), max_rules=2).map(_seeded)
        return Drawn(arch, draw(seeded))
    return Drawn(arch)


def programs(
    *, networks: st.SearchStrategy[Arch] | None = None, masked: bool | None = None
) -> st.SearchStrategy[Program]:
    """Draw Programs of small networks; each is the caller's own, to edit.

    Args:
        networks: what to draw networks from; `architectures()`, with and without runs, by default.
        masked: whether they have masks; some do when None.

    Example:
        >>> from hypothesis import find
        >>> small = architectures(max_layers=1, shapes=["features"], dtypes=["float32"])
        >>> drawn = programs(networks=small, masked=True)
        >>> program = find(drawn, lambda program: len(program.masks) == 1)
        >>> [mask.dtype for mask in program.masks.values()]
        [torch.float32]
    """
    return drawn(networks=networks, masked=masked).map(Drawn.program)


@st.composite
def calibrations(
    draw: st.DrawFn, program: Program, *, max_inputs: int = 3, max_batch: int = 5
) -> list[Inputs]:
    """Draw inputs that fit a Program, in batches of several sizes where its batch is dynamic.

    Args:
        draw: given by hypothesis.
        program: what the inputs are for.
        max_inputs: how many inputs there are at most.
        max_batch: the largest batch.

    Returns:
        `(args, kwargs)` of each, at least one.

    Raises:
        InputError: the Program does not know its shapes.

    Example:
        >>> import torch, fxprune
        >>> from hypothesis import find
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> found = find(calibrations(program), lambda inputs: len(inputs) == 2)
        >>> [args[0].shape for args, kwargs in found]
        [torch.Size([1, 3]), torch.Size([1, 3])]
    """
    if not program.captured.inputs.drawable:
        raise InputError("inputs cannot be drawn for a Program that was captured without an input")
    sizes, seeds = st.integers(1, max_batch), st.integers(0, 2**16)
    chosen = draw(st.lists(st.tuples(sizes, seeds), min_size=1, max_size=max_inputs))
    return [program.example(batch=batch, seed=seed) for batch, seed in chosen]


def _seeded(recipe: Recipe) -> Recipe:
    """Give every random rule a seed, so that the Program is the same each time."""
    rules = tuple(
        rule.model_copy(update={"seed": 0})
        if "random" in str(rule.method) and rule.seed is None
        else rule
        for rule in recipe.rules
    )
    return recipe.model_copy(update={"rules": rules})
